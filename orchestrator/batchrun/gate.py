"""The one flag that each item start looks at: open, or closed for a reason."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from orchestrator.core.model import EndReason


class Gate:
    """Open until something closes it, once; the first reason stays.

    `reason` is read without a lock at each item start: reading one attribute costs nothing and cannot be torn.
    """

    def __init__(self) -> None:
        self.reason: EndReason | None = None
        self.why: str | None = None
        self.closed_at: float | None = None  # time.monotonic()
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []

    def close(self, reason: EndReason, why: str | None = None) -> bool:
        """Close for that reason; False when it is closed already."""
        with self._lock:
            if self.reason is not None:
                return False
            self.why, self.closed_at = why, time.monotonic()
            self.reason = reason
            listeners = list(self._listeners)
        for listener in listeners:
            listener()
        return True

    def on_close(self, listener: Callable[[], None]) -> None:
        """Call `listener` when the gate closes (now, when it is closed); from whatever thread closes it."""
        with self._lock:
            closed = self.reason is not None
            if not closed:
                self._listeners.append(listener)
        if closed:
            listener()
