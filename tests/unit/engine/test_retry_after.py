"""What a server means by Retry-After."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from orchestrator.engine.connection import _retry_after


@pytest.mark.parametrize(("said", "seconds"), [("7", 7.0), ("0", 0.0), ("-3", 0.0), ("1.5", 1.5), ("", None),
                         ("soon", None), ("nan", None), ("inf", None)])  # fmt: skip
def test_seconds_are_taken_as_they_are_and_nonsense_is_nothing(said: str, seconds: float | None) -> None:
    assert _retry_after({"Retry-After": said}) == seconds


def test_a_date_is_so_many_seconds_away() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 <= (_retry_after({"Retry-After": later}) or 0) <= 30
    assert _retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0


def test_nothing_said_is_nothing() -> None:
    assert _retry_after({}) is None
