"""What a server means by Retry-After."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from orchestrator.engine.connection import _retry_after, pause_before_retry
from orchestrator.engine.pace import Need, asking
from orchestrator.engine.translate import BusyError


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


@pytest.mark.parametrize(("need", "least", "most"), [(Need.CANCEL, 4, 5), (Need.CONFIRM, 4, 5), (Need.READ, 30, 36)])
def test_a_stop_waits_for_a_busy_server_for_seconds_whatever_that_asks_for(need: Need, least: int, most: int) -> None:
    with asking(need):
        assert least <= pause_before_retry(BusyError(503, 30.0), 0.2) <= most
        assert pause_before_retry(BusyError(503, 0.5), 0.2) <= 0.6
