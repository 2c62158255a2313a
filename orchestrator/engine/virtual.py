"""An event loop whose clock jumps: hours of waiting take milliseconds, and twice the same run is the same run.

Code that takes its time from `loop.time()` and `asyncio.sleep` alone runs under it unchanged. When nothing is ready
the clock jumps to the next timer. Work handed to threads (`asyncio.to_thread`) is done in place by default, so that
the order of everything is decided by the program and not by the operating system.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_STUCK_SECONDS = 5.0


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A selector loop with a virtual clock that starts at 0.

    Args:
        threads: Whether `run_in_executor` uses real threads. The clock then stands still while any of them works.
            False (default) calls the function in place: deterministic, and it must not wait for the loop.
    """

    def __init__(self, *, threads: bool = False) -> None:
        self._virtual_now = 0.0
        self._in_threads = 0
        self._threads = threads
        super().__init__(_JumpingSelector(self))
        # Sums of floats: a timer that is due within a microsecond is due.
        self._clock_resolution = 1e-6

    def time(self) -> float:
        """Seconds of virtual time since the loop was made."""
        return self._virtual_now

    def jump(self, seconds: float) -> None:
        """Let that much time pass at once (the selector's business; programs sleep instead)."""
        self._virtual_now += seconds

    @property
    def waits_for_threads(self) -> bool:
        return self._in_threads > 0

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        if not self._threads:
            done: asyncio.Future[T] = self.create_future()
            try:
                done.set_result(func(*args))
            except StopIteration as error:  # a Future refuses it
                done.set_exception(RuntimeError(f"{func!r} raised StopIteration: {error}"))
            except Exception as error:  # noqa: BLE001 - it belongs to whoever awaits
                done.set_exception(error)
            return done
        self._in_threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._left_thread)
        return future

    def _left_thread(self, _: asyncio.Future[Any]) -> None:
        self._in_threads -= 1


class _JumpingSelector(selectors.DefaultSelector):
    """Asks for ready sockets without waiting, and passes the time the loop wanted to wait in no time."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if self._loop.waits_for_threads:
            return super().select(0.05)
        if timeout is None:
            # No timer at all: only another thread can still wake us. Nobody doing so is a bug to be told, not a hang.
            if not (ready := super().select(_STUCK_SECONDS)):
                raise RuntimeError("everything waits and no timer is set: the program can never go on")
            return ready
        if timeout > 0:
            self._loop.jump(timeout)
        return ready


def run(main: Coroutine[Any, Any, T], *, threads: bool = False) -> T:
    """Run a coroutine to its end under virtual time, as `asyncio.run` does under real time."""
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(threads=threads)) as runner:
        return runner.run(main)
