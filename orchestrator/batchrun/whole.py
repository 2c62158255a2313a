"""`per="batch"`: the whole slice in one call of a vectorised function, which returns one outcome per item."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Sequence
from typing import Any

from orchestrator.batchrun.door import Door
from orchestrator.batchrun.gate import Gate
from orchestrator.batchrun.options import Options
from orchestrator.batchrun.recorder import Recorder
from orchestrator.batchrun.work import Work
from orchestrator.core.model import Item


class Whole:
    """One call for all items. An exception in the returned list fails its item; one that is raised fails them all."""

    def __init__(self, items: Sequence[Item], work: Work, options: Options, gate: Gate, recorder: Recorder, door: Door,
                 *, grace_seconds: float) -> None:  # fmt: skip
        self._items, self._work, self._options = list(items), work, options
        self._gate, self._recorder, self._door, self._grace = gate, recorder, door, grace_seconds
        self._over = threading.Event()
        self._wake = threading.Event()
        self._fatal: BaseException | None = None
        self.hung = 0

    def run(self) -> None:
        """Until the function returned, or the gate closed and the grace has passed."""
        if not self._items:
            return
        self._gate.on_close(self._wake.set)
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._run,), name="batch-slice", daemon=True).start()
        self._wake.wait()
        if not self._over.is_set():
            left = (
                self._grace if self._gate.closed_at is None else self._gate.closed_at + self._grace - time.monotonic()
            )
            self._over.wait(max(0.0, left))
        self.hung = 0 if self._over.is_set() else 1
        if self._fatal is not None:
            raise self._fatal

    async def arun(self) -> None:
        """As `run`, in the loop."""
        closed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_close() -> None:
            try:
                loop.call_soon_threadsafe(closed.set)
            except RuntimeError:
                pass  # the loop is over

        self._gate.on_close(on_close)
        call, stop = asyncio.create_task(self._arun()), asyncio.create_task(closed.wait())
        try:
            await asyncio.wait((call, stop), return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                await asyncio.wait((call,), timeout=self._grace)
        finally:
            stop.cancel()
            call.cancel()
            _, stubborn = await asyncio.wait((call, stop), timeout=1.0)
            self.hung = len(stubborn)
        if not call.cancelled() and call.done():
            call.result()

    def _run(self) -> None:
        try:
            with self._door.hold(self._options.concurrency_limits):
                if not self._start():
                    return
                began = time.perf_counter()
                try:
                    self._finish(self._door.resolve(self._work.on_all(self._items)), began)
                except BaseException as error:  # noqa: BLE001 - fails its items: real signals reach the main thread
                    self._fail_all(error, began)
        except BaseException as error:  # noqa: BLE001 - the main thread raises it again
            self._fatal = error
        finally:
            self._over.set()
            self._wake.set()

    async def _arun(self) -> None:
        async with self._door.ahold(self._options.concurrency_limits):
            if not self._start():
                return
            began = time.perf_counter()
            try:
                self._finish(await self._work.on_all(self._items), began)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - fails its items
                self._fail_all(error, began)

    def _start(self) -> bool:
        for number, item in enumerate(self._items):
            if not self._recorder.start(item):
                for started in self._items[:number]:
                    self._recorder.withdraw(started)
                return False
        return True

    def _finish(self, returned: Any, began: float) -> None:
        if not isinstance(returned, list | tuple) or len(returned) != len(self._items):
            what = f"{len(returned)} outcomes" if isinstance(returned, list | tuple) else type(returned).__name__
            raise TypeError(f'returned {what} for {len(self._items)} items: with per="batch" return a list with one '
                            "outcome per item, in their order; an exception in it fails its item")  # fmt: skip
        each = (time.perf_counter() - began) / len(self._items)
        for item, outcome in zip(self._items, returned, strict=True):
            if isinstance(outcome, BaseException):
                self._recorder.fail(item, outcome, 1, each)
            else:
                self._recorder.succeed(item, outcome, 1, each)

    def _fail_all(self, error: BaseException, began: float) -> None:
        each = (time.perf_counter() - began) / len(self._items)
        for item in self._items:
            self._recorder.fail(item, error, 1, each)
