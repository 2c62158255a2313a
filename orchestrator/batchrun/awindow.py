"""The window of async items: `item_concurrency` coroutines in the run's own loop, one item ends and the next starts.

An item beyond its timeout is cancelled. Outcomes are written as they happen, from the loop: on local storage that is
one short write; object stores take them into memory and send them from a thread of their own.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

from orchestrator.batchrun.door import Door
from orchestrator.batchrun.gate import Gate
from orchestrator.batchrun.options import Options
from orchestrator.batchrun.recorder import Recorder
from orchestrator.batchrun.work import Work
from orchestrator.core.model import Item
from orchestrator.errors import ConfigurationError, ItemTimeoutError

_LIMIT_RETRY_SECONDS = 5.0


class AsyncWindow:
    """Runs items through an async `work`; see the module."""

    def __init__(self, items: Iterable[Item], work: Work, options: Options, gate: Gate, recorder: Recorder, door: Door,
                 *, grace_seconds: float) -> None:  # fmt: skip
        self._queue = deque(items)
        self._work, self._options, self._gate, self._recorder, self._door = work, options, gate, recorder, door
        self._grace = grace_seconds
        self._closed = asyncio.Event()
        self.hung = 0

    async def run(self) -> None:
        """Until no item is left, or the gate closed and the grace has passed.

        Raises:
            ConfigurationError: a concurrency limit is missing.
            BaseException: a cancellation or termination of this run.
        """
        loop = asyncio.get_running_loop()

        def on_close() -> None:  # called from the thread that closes the gate
            try:
                loop.call_soon_threadsafe(self._closed.set)
            except RuntimeError:
                pass  # the loop is over, and with it the run

        self._gate.on_close(on_close)
        workers = [
            asyncio.create_task(self._worker(), name=f"batch-item-{n}")
            for n in range(min(self._options.item_concurrency, len(self._queue)))
        ]
        closed = asyncio.create_task(self._closed.wait())
        try:
            pending: set[asyncio.Task[Any]] = set(workers)
            while pending:
                late = None
                if self._gate.closed_at is not None:
                    late = max(0.0, self._gate.closed_at + self._grace - time.monotonic())
                watched = pending if closed.done() else pending | {closed}
                done, rest = await asyncio.wait(watched, timeout=late, return_when=asyncio.FIRST_COMPLETED)
                pending = rest - {closed}
                for task in done - {closed}:
                    task.result()  # raises what ends the run
                if late is not None and time.monotonic() >= (self._gate.closed_at or 0) + self._grace:
                    break
        finally:
            for task in (*workers, closed):
                task.cancel()
            # Cancelled items get a moment to clean up; one that refuses is left to the end of the process.
            _, stubborn = await asyncio.wait((*workers, closed), timeout=1.0)
            self.hung = len(stubborn)

    async def _worker(self) -> None:
        limits = self._options.concurrency_limits
        while self._gate.reason is None and self._queue:
            item = self._queue.popleft()
            if limits:
                await self._with_slot(item)
            else:
                await self._one(item)

    async def _with_slot(self, item: Item) -> None:
        """The item while its slots are held: from before its first try until after its last."""
        slots = await self._acquire()
        if slots is None:
            return
        try:
            await self._one(item)
        finally:
            try:
                await slots.__aexit__(None, None, None)
            except Exception as error:  # noqa: BLE001 - giving back a slot that a restart lost fails no item
                self._door.logger.debug("A concurrency slot was not given back: %s", self._recorder.text_of(error))

    async def _acquire(self) -> AbstractAsyncContextManager[None] | None:
        """Slots of all limits, waiting through outages; None once nothing may start any more."""
        held: AbstractAsyncContextManager[None] | None = None

        async def enter() -> None:
            nonlocal held
            slots = self._door.ahold(self._options.concurrency_limits)
            await slots.__aenter__()
            held = slots

        return held if await self._through(enter) else None

    async def _take_rate(self) -> bool:
        return await self._through(lambda: self._door.atake(self._options.rate_limits))

    async def _through(self, ask: Callable[[], Awaitable[None]]) -> bool:
        """Ask until it is granted; False once nothing may start any more."""
        while self._gate.reason is None:
            try:
                await ask()
            except ConfigurationError:
                raise
            except Exception as error:  # noqa: BLE001 - the API is away: the item has not started, so it waits
                self._door.logger.debug("Waiting for a concurrency limit: %s", self._recorder.text_of(error))
                await self._pause(_LIMIT_RETRY_SECONDS)
            else:
                return True
        return False

    async def _pause(self, seconds: float) -> None:
        """Wait so long, or until the gate closes."""
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            pass

    async def _one(self, item: Item) -> None:
        """All tries of one item."""
        options, recorder = self._options, self._recorder
        if options.rate_limits and not await self._take_rate():
            return
        if not recorder.start(item):
            return
        began, tries = time.perf_counter(), 1
        while True:
            try:
                result = await self._call(item)
            except (Exception, SystemExit, asyncio.CancelledError) as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise  # the run is being ended; otherwise the user's code leaked a cancellation of its own
                if not options.tries_again(error, tries, self._door.logger.warning):
                    recorder.fail(item, error, tries, time.perf_counter() - began)
                    return
            else:
                recorder.succeed(item, result, tries, time.perf_counter() - began)
                return
            if options.item_retry_delay_seconds:
                await self._pause(options.item_retry_delay_seconds)
            # No new try once the gate is closed: the item stays in progress, and is named so at the end.
            if self._gate.reason is not None or (options.rate_limits and not await self._take_rate()):
                return
            tries += 1

    async def _call(self, item: Item) -> Any:
        seconds = self._options.item_timeout_seconds
        if seconds is None:
            return await self._resolved(await self._work(item))
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                return await self._resolved(await self._work(item))
        except TimeoutError as error:
            if not limit.expired():
                raise  # the user's own timeout, to be told as theirs
            raise ItemTimeoutError(f"took longer than {seconds:g} s") from error

    async def _resolved(self, result: Any) -> Any:
        if not self._door.holds_futures(result):
            return result
        return await asyncio.to_thread(self._door.resolve, result)  # waits: not in the loop
