"""The window of sync items: at most `item_concurrency` at once, each in a thread, one ends and the next starts.

Threads take items from one queue themselves, so nothing is handed over per item: a plain function costs microseconds.
They are daemons and the run's main thread only waits: a hung item can hold neither the run nor the process, and a
termination signal, which Python delivers to the main thread, never lands inside a record being written.

A thread cannot be interrupted. An item beyond its timeout is failed, its thread abandoned and replaced; when as many
as `item_concurrency` abandoned threads hang at the same time, the run is stuck and ends for a new attempt.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from orchestrator.batchrun.door import Door
from orchestrator.batchrun.gate import Gate
from orchestrator.batchrun.options import Options
from orchestrator.batchrun.processes import ProcessCall
from orchestrator.batchrun.recorder import Recorder
from orchestrator.batchrun.work import Work
from orchestrator.core.model import EndReason, Item
from orchestrator.errors import ConfigurationError, ItemTimeoutError

_LIMIT_RETRY_SECONDS = 5.0


class _Worker:
    """One thread of the window and what it is at."""

    __slots__ = ("abandoned", "item", "over", "process", "since", "thread", "tries")

    def __init__(self) -> None:
        self.item: Item | None = None
        self.since: float | None = None  # time.monotonic() when the item's current try began
        self.tries = 1
        self.abandoned = False
        self.over = False
        self.process: ProcessCall | None = None
        self.thread: threading.Thread | None = None


class Window:
    """Runs items through `work`; see the module.

    Args:
        grace_seconds: That running items get to finish once the gate is closed.
        new_process: Makes the other process of a thread (`executor="processes"`); None: items run in the threads.
    """

    def __init__(self, items: Iterable[Item], work: Work, options: Options, gate: Gate, recorder: Recorder, door: Door,
                 *, grace_seconds: float, new_process: Callable[[], ProcessCall] | None = None) -> None:  # fmt: skip
        self._queue = deque(items)
        self._work, self._options, self._gate, self._recorder, self._door = work, options, gate, recorder, door
        self._grace, self._new_process = grace_seconds, new_process
        # A process can be ended by the thread that waits for it; a thread cannot, so the main thread watches those.
        self._timeout = options.item_timeout_seconds if new_process is None else None
        self._workers: list[_Worker] = []
        self._wake = threading.Event()
        self._closed = threading.Event()  # the gate is closed: interrupts waits between tries
        self._fatal: BaseException | None = None

    # ------------------------------------------------------------------ main thread

    def run(self) -> None:
        """Until no item is left, or the gate closed and the grace has passed.

        Raises:
            ConfigurationError: a concurrency limit is missing.
            BaseException: whatever a termination signal raised in this thread.
        """
        if not self._queue:
            return
        self._gate.on_close(self._on_close)
        for _ in range(min(self._options.item_concurrency, len(self._queue))):
            self._hire()
        try:
            self._watch()
        finally:
            for worker in self._workers:
                worker.abandoned = True
                if worker.process is not None:
                    worker.process.kill()
        if self._fatal is not None:
            raise self._fatal

    @property
    def hung(self) -> int:
        """Threads of the window that have not ended."""
        return sum(not worker.over for worker in self._workers)

    def _watch(self) -> None:
        while True:
            self._wake.wait(self._next_look())
            self._wake.clear()
            if self._fatal is not None or all(w.over or w.abandoned for w in self._workers):
                return
            if self._gate.closed_at is not None and time.monotonic() >= self._gate.closed_at + self._grace:
                return
            if self._timeout is not None:
                self._abandon_overdue(self._timeout)

    def _next_look(self) -> float | None:
        now = time.monotonic()
        moments = [] if self._gate.closed_at is None else [self._gate.closed_at + self._grace]
        if self._timeout is not None:
            # An item that starts after this was computed is due later than `now + timeout`.
            running = [w.since for w in self._workers if w.since is not None and not w.abandoned]
            moments.append(min(running, default=now) + self._timeout)
        return max(0.0, min(moments) - now) + 0.001 if moments else None

    def _abandon_overdue(self, timeout: float) -> None:
        now, left = time.monotonic(), 0
        for worker in self._workers:
            since, item = worker.since, worker.item
            if worker.abandoned or worker.over or since is None or item is None or now - since < timeout:
                continue
            error = ItemTimeoutError(f"took longer than {timeout:g} s")
            if worker.item is not item or not self._recorder.fail(item, error, worker.tries, now - since):
                continue  # it ended at this very moment
            worker.abandoned = True
            left += 1
        if left and self._queue:
            hung = sum(w.abandoned and not w.over for w in self._workers)
            if hung >= self._options.item_concurrency:
                self._gate.close(EndReason.STUCK, f"{hung} items hang beyond their timeout")
                return
            for _ in range(min(left, len(self._queue))):
                self._hire()
        self._workers = [w for w in self._workers if not (w.over and w.abandoned)]
        if all(w.over or w.abandoned for w in self._workers):
            self._wake.set()

    def _hire(self) -> None:
        worker = _Worker()
        # Each thread gets the run's context, so that its logger, tags and limits work in the user's function.
        context = contextvars.copy_context()
        worker.thread = threading.Thread(target=context.run, args=(self._run, worker), name="batch-item", daemon=True)
        self._workers.append(worker)
        worker.thread.start()

    def _on_close(self) -> None:
        self._closed.set()
        self._wake.set()

    # ------------------------------------------------------------------ item threads

    def _run(self, worker: _Worker) -> None:
        try:
            if self._new_process is not None:
                worker.process = self._new_process()
            limits, gate, queue = self._options.concurrency_limits, self._gate, self._queue
            while gate.reason is None and not worker.abandoned:
                try:
                    item = queue.popleft()
                except IndexError:
                    break
                if limits:
                    self._with_slot(worker, item)
                else:
                    self._one(worker, item)
        except BaseException as error:  # noqa: BLE001 - nobody else would see it: the main thread raises it again
            self._fatal = self._fatal or error
        finally:
            worker.over = True
            if worker.process is not None:
                worker.process.close()
            self._wake.set()

    def _with_slot(self, worker: _Worker, item: Item) -> None:
        """The item while its slots are held: from before its first try until after its last."""
        slots = self._acquire()
        if slots is None:
            return
        try:
            self._one(worker, item)
        finally:
            try:
                slots.__exit__(None, None, None)
            except Exception as error:  # noqa: BLE001 - giving back a slot that a restart lost fails no item
                self._door.logger.debug("A concurrency slot was not given back: %s", self._recorder.text_of(error))

    def _acquire(self) -> AbstractContextManager[None] | None:
        """Slots of all limits, waiting through outages; None once nothing may start any more."""
        while self._gate.reason is None:
            slots = self._door.hold(self._options.concurrency_limits)
            try:
                slots.__enter__()
            except ConfigurationError:
                raise
            except Exception as error:  # noqa: BLE001 - the API is away: the item has not started, so it waits
                self._door.logger.debug("Waiting for concurrency slots: %s", self._recorder.text_of(error))
                self._closed.wait(_LIMIT_RETRY_SECONDS)
            else:
                return slots
        return None

    def _take_rate(self) -> bool:
        while self._gate.reason is None:
            try:
                self._door.take(self._options.rate_limits)
            except ConfigurationError:
                raise
            except Exception as error:  # noqa: BLE001 - as above
                self._door.logger.debug("Waiting for a rate limit: %s", self._recorder.text_of(error))
                self._closed.wait(_LIMIT_RETRY_SECONDS)
            else:
                return self._gate.reason is None
        return False

    def _one(self, worker: _Worker, item: Item) -> None:
        """All tries of one item."""
        options, recorder = self._options, self._recorder
        call = self._work if worker.process is None else worker.process
        if options.rate_limits and not self._take_rate():
            return
        if not recorder.start(item):
            return
        worker.item, worker.tries = item, 1
        began = time.perf_counter()
        while True:
            worker.since = time.monotonic()
            try:
                result = self._door.resolve(call(item))
                worker.since = None
            except BaseException as error:  # noqa: BLE001 - fails its item: real signals reach the main thread alone
                worker.since = None
                if worker.abandoned:
                    return
                if not options.tries_again(error, worker.tries, self._door.logger.warning):
                    recorder.fail(item, error, worker.tries, time.perf_counter() - began)
                    break
            else:
                recorder.succeed(item, result, worker.tries, time.perf_counter() - began)
                break
            # No new try once the gate is closed: the item stays in progress, and is named so at the end.
            if self._closed.wait(options.item_retry_delay_seconds) or self._gate.reason is not None:
                break
            if options.rate_limits and not self._take_rate():
                break
            worker.tries += 1
        worker.item = None
