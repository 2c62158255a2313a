"""A deadline for one case among many: what hangs is named."""

from __future__ import annotations

import signal
import threading
from typing import Self


class Deadline:
    """Within, in the main thread: after so many seconds it is interrupted as by Ctrl-C, and the case fails by name."""

    def __init__(self, seconds: float, what: str) -> None:
        self._what = f"hangs: {what}"
        self._passed = False
        self._timer = threading.Timer(seconds, self._interrupt)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if self._passed:
            raise AssertionError(self._what)

    def _interrupt(self) -> None:
        self._passed = True
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
