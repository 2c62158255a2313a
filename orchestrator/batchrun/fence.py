"""The fence: looks at the job folder in its own thread and closes the gate.

What closes it: a stop with mode cancel, a revocation of this attempt, and a parent that gave no sign of life for
`lease_seconds` of *this* machine's monotonic clock. A folder that cannot be read counts as a parent that says nothing:
a child cut off from its storage must not work on for ever. A stop with mode drain lets children in flight finish.

It is a thread, not a task of the user's loop: the user's code may block that loop. And it is two of them, one that
reads and one that watches it: storage behind a broken network does not fail, it does not answer.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Literal, Protocol

from orchestrator.batchrun.gate import Gate
from orchestrator.core.model import EndReason, StopMode, StopRecord
from orchestrator.engine.output import drop_broken_outputs, outlive_readers
from orchestrator.errors import OrchestratorError


class LeaseLike(Protocol):
    @property
    def counter(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def on_loss(self) -> Literal["stop", "finish"]: ...


class Watched(Protocol):
    """What the fence reads of a job folder (`store.JobFolder`)."""

    def read_stop(self) -> StopRecord | None: ...
    def is_revoked(self, batch: int, attempt: int) -> bool: ...
    def read_lease(self) -> LeaseLike | None: ...
    def write_alive(self, batch: int, attempt: int, counter: int) -> None: ...


class Fence:
    """Looks every `interval` seconds until stopped.

    Args:
        folder, batch, attempt: What is watched.
        gate: Closed when the attempt must end.
        interval: Seconds between two looks.
        lease_seconds: After which an unchanged sign of life means that the parent is gone; None: never.
        alive_seconds: Between two signs of life of this run, for its parent; 0: none. The first comes at once.
        overdue_seconds: After the gate closed, when `on_overdue` is called once: the run should be over by then.
        on_overdue: The last resort, called from this thread.
    """

    def __init__(
        self,
        folder: Watched,
        batch: int,
        attempt: int,
        gate: Gate,
        *,
        interval: float,
        lease_seconds: float | None,
        alive_seconds: float = 0.0,
        overdue_seconds: float = 15.0,
        on_overdue: Callable[[], None] | None = None,
    ) -> None:
        self._folder, self._batch, self._attempt, self._gate = folder, batch, attempt, gate
        self._interval, self._lease_seconds = interval, lease_seconds
        self._alive_seconds, self._alive_at, self._alive_counter = alive_seconds, -math.inf, 0
        self._overdue_seconds, self._on_overdue = overdue_seconds, on_overdue
        self._seen: tuple[int, int] | None = None
        self._changed_at = time.monotonic()
        self._on_loss: Literal["stop", "finish"] = "stop"
        self._unanswered = 0.0  # seconds in which this process ran since a look came to its end
        self._over = threading.Event()

    def start(self) -> None:
        """Begin to look, at once and then every interval. The clock of the parent's sign of life starts here."""
        outlive_readers()
        self._changed_at = time.monotonic()
        for name, work in (("batch-look", self._look_regularly), ("batch-watch", self._watch)):
            threading.Thread(target=work, name=name, daemon=True).start()

    def stop(self) -> None:
        """The run is over: look no more. Does not wait for a reading under way."""
        self._over.set()

    def look(self) -> None:
        """One look: closes the gate when there is a reason to."""
        try:
            if self._folder.is_revoked(self._batch, self._attempt):
                self._gate.close(EndReason.REVOKED)
                return
            stop = self._folder.read_stop()
            if stop is not None and stop.mode is StopMode.CANCEL:
                self._gate.close(EndReason.STOPPED, stop.reason)
                return
            lease = self._folder.read_lease()
        except (OrchestratorError, OSError):
            lease = None  # says nothing: the clock below runs on
        if lease is not None:
            self._on_loss = lease.on_loss
            if (lease.epoch, lease.counter) != self._seen:
                self._seen, self._changed_at = (lease.epoch, lease.counter), time.monotonic()
        self._judge(time.monotonic() - self._changed_at)

    def _judge(self, silent_seconds: float) -> None:
        lost = self._lease_seconds is not None and silent_seconds > self._lease_seconds
        if lost and self._on_loss != "finish":
            self._gate.close(EndReason.LEASE_LOST)

    def say_alive(self) -> None:
        """Write a sign of life when it is time for one; a folder that is away only makes it come later."""
        now = time.monotonic()
        if not self._alive_seconds or now - self._alive_at < self._alive_seconds:
            return
        self._alive_counter += 1
        try:
            self._folder.write_alive(self._batch, self._attempt, self._alive_counter)
        except Exception:  # noqa: BLE001 - whatever is wrong with it, the run goes on
            return
        self._alive_at = now

    def _look_regularly(self) -> None:
        while True:
            began = time.monotonic()
            self.say_alive()
            if self._gate.reason is None:
                try:
                    self.look()
                except Exception:  # noqa: BLE001 - a watcher that dies of a surprise would let items start for ever
                    pass
            self._unanswered = 0.0
            # The look itself counts: an interval is from start to start, else a slow store stretches the promise.
            if self._over.wait(max(0.05, self._interval - (time.monotonic() - began))):
                return

    def _watch(self) -> None:
        at = time.monotonic()
        while not self._over.wait(self._interval):
            drop_broken_outputs()
            before, at = at, time.monotonic()
            if self._gate.reason is None:
                # Counted, so that a process that slept looks first.
                self._unanswered += min(at - before, 2 * self._interval)
                self._judge(self._unanswered)
            elif self._gate.closed_at is not None and time.monotonic() - self._gate.closed_at > self._overdue_seconds:
                if self._on_overdue is not None and not self._over.is_set():
                    self._on_overdue()
                return
