"""A job folder that cannot be written or read now: why, for the page and the log, where people wonder what is wrong."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

SAID_SECONDS = 60.0
RECENT_SECONDS = 60.0


class FolderTrouble:
    """Says what keeps the parent from its job folder, at most once a minute.

    Args:
        unwritable: Gives the error of the last sign of life; None when it could be written.
    """

    def __init__(
        self, log: logging.Logger | logging.LoggerAdapter[Any], unwritable: Callable[[], Exception | None]
    ) -> None:
        self._log, self._unwritable = log, unwritable
        self.unreadable: Exception | None = None  # the error of the last look at stops and controls
        self._said, self._is_told = -math.inf, False
        self._at = self._last = -math.inf  # of the last look, and of the last that found something wrong
        self.now: str | None = None

    def is_recent(self) -> bool:
        """Whether something is or was wrong within the last minute; from any thread."""
        return self.unreadable is not None or self._unwritable() is not None or self._at - self._last < RECENT_SECONDS

    def look(self, at: float) -> str | None:
        """What is wrong at that moment (seconds of the loop), None when nothing is; said in the log."""
        self.now = None
        for verb, error in (("written", self._unwritable()), ("read", self.unreadable)):
            if error is not None:
                self.now = f"the job folder cannot be {verb}: {_reason(error)}"
                break
        self._at = at
        if self.now is not None:
            self._last = at
        if self.now is not None and at - self._said >= SAID_SECONDS:
            self._said, self._is_told = at, True
            self._log.warning("The job is held up: %s. It goes on once that is mended.", self.now)
        elif self.now is None and self._is_told:
            self._is_told = False
            self._log.info("The job folder can be written and read again.")
        return self.now


def _reason(error: Exception) -> str:
    """The operating system's words where it has any: the path is on the page already."""
    cause = error.__cause__
    return cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
