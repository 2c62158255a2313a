"""What the child's door does for threads that nobody watches."""

from __future__ import annotations

import logging

import pytest

from orchestrator.engine.child import _Unbreakable


class BrokenPipe(logging.Handler):
    """As rich's console once its pipe is broken."""

    def emit(self, record: logging.LogRecord) -> None:
        raise SystemExit(1)


def test_a_log_line_to_a_broken_console_ends_no_thread():
    logger = logging.Logger("child")
    logger.addHandler(BrokenPipe())
    with pytest.raises(SystemExit):
        logger.warning("as it comes")
    _Unbreakable(logger, str).warning("%d items left", 3)


def test_log_lines_arrive_as_they_were_written(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "child-door"):
        _Unbreakable(logging.getLogger("child-door"), str).info("%d items", 3, extra={"job": "j"})
    (record,) = caplog.records
    assert (record.getMessage(), record.levelname, record.job) == ("3 items", "INFO", "j")  # type: ignore[attr-defined]
