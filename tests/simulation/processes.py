"""Processes that can die between any two steps, on one loop in virtual time.

Everything that a simulated parent does runs in a context that names its process; tasks, timers and callbacks inherit
it. When a process dies, none of its callbacks runs any more: no `except`, no `finally`, no answer that was on its way
to it. What it was in the middle of is taken apart after the checker has looked (`bury`), with its storage gone.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

from orchestrator.engine.virtual import VirtualTimeLoop

OWNER: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class DiedError(BaseException):
    """Raised where a process dies in the middle of its own code; nothing of ours catches it."""


class Process:
    """One operating system process, as far as a loop can have one.

    Args:
        name: For stories.
        on_death: Called once, outside of the process.
        dies_at_step: It dies before its so-manieth step is run; None: not there.
    """

    def __init__(self, name: str, on_death: Callable[[], None], *, dies_at_step: int | None = None) -> None:
        self.name, self.on_death = name, on_death
        self.alive, self.steps, self.dies_at_step = True, 0, dies_at_step

    def run(self, loop: ProcessLoop, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start it."""
        loop.processes.append(self)
        context = contextvars.copy_context()
        context.run(OWNER.set, self)
        return loop.create_task(work, context=context)


class ProcessLoop(VirtualTimeLoop):
    """A virtual loop that knows whose each callback is, and counts steps.

    Args:
        most_steps: After which `on_livelock` is called, once.
    """

    def __init__(self, most_steps: int = 5_000_000) -> None:
        self.steps, self.most_steps = 0, most_steps
        self.processes: list[Process] = []
        self.on_livelock: Callable[[], None] | None = None
        self._of_processes: list[asyncio.Task[Any]] = []  # kept: one that is collected would run its `finally`
        super().__init__()

    def create_task(self, coro: Any, *, name: str | None = None, context: contextvars.Context | None = None) -> Any:
        task = super().create_task(coro, name=name, context=context)
        if (OWNER.get() if context is None else context.get(OWNER)) is not None:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            self._of_processes.append(task)
            if len(self._of_processes) > 2000:
                self._of_processes = [t for t in self._of_processes if not t.done()]
        return task

    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> asyncio.Handle:
        handle = super().call_soon(callback, *args, context=context)
        self.steps += 1
        if self.steps == self.most_steps and self.on_livelock is not None:
            self.on_livelock()
        owner = handle._context.get(OWNER)  # type: ignore[attr-defined]
        if owner is not None:
            if not owner.alive:
                handle.cancel()
            else:
                owner.steps += 1
                if owner.steps == owner.dies_at_step:
                    handle.cancel()
                    super().call_soon(self.kill, owner, context=contextvars.Context())
        return handle

    def call_at(
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = super().call_at(when, callback, *args, context=context)
        owner = handle._context.get(OWNER)  # type: ignore[attr-defined]
        if owner is not None and not owner.alive:
            handle.cancel()
        return handle

    def kill(self, process: Process) -> None:
        """End a process now: nothing that it scheduled will run."""
        if not process.alive:
            return
        process.alive = False
        for handle in (*self._ready, *self._scheduled):  # type: ignore[attr-defined]
            if not handle.cancelled() and handle._context.get(OWNER) is process:
                handle.cancel()
        contextvars.Context().run(process.on_death)

    def bury(self) -> None:
        """Take apart what processes left in the middle: whatever it still says is heard by nobody."""
        for task in self._of_processes:
            if task.done():
                continue
            for _ in range(20):  # a `finally` that awaits ignores being closed
                try:
                    task.get_coro().close()  # type: ignore[union-attr]
                    break
                except BaseException:  # the dead may say what they like
                    continue


def run(main: Coroutine[Any, Any, Any], most_steps: int) -> Any:
    """Run a story to its end, and take everything apart that it leaves."""
    loop = ProcessLoop(most_steps)
    # Tasks of the dead end in whatever way; nobody is to hear of it.
    loop.set_exception_handler(lambda loop, context: None)
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main)
    finally:
        tasks = [task for task in asyncio.all_tasks(loop) if task not in set(loop._of_processes)]
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        for process in loop.processes:
            process.alive = False
        loop.bury()
        asyncio.set_event_loop(None)
        loop.close()
