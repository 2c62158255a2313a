"""A deadline for one case among many: what hangs is named."""

from __future__ import annotations

import faulthandler
import sys
import threading
from typing import Self


class Deadline:
    """Within: after so many seconds the stacks are printed and the process ends, for nothing can interrupt a read."""

    def __init__(self, seconds: float, what: str) -> None:
        self._what = what
        self._timer = threading.Timer(seconds, self._passed)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _passed(self) -> None:
        import os

        sys.__stderr__.write(f"\nhangs: {self._what}\n")  # type: ignore[union-attr]
        faulthandler.dump_traceback(file=sys.__stderr__)
        os._exit(3)
