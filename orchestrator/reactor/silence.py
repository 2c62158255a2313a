"""Children that say nothing: a child run whose process died together with its worker stays Running in Prefect for ever.

Each child writes a sign of life into the job folder every `alive` seconds, from a thread, so that a long item, a
blocked loop or a pool of processes does not keep it from it. Here the parent looks at it, of those children alone that
gave no other news for a while, and posts `FellSilent` for one whose sign stood still for too long.

What is counted is time of the parent's own monotonic clock in which it could read the folder. So neither a storage that
was away nor a parent that slept gives a child up. A child of an older version that never writes a sign (its ledger is
there, and no sign is) is left alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.core.machine import Stage, State
from orchestrator.core.machine import events as ev
from orchestrator.core.model import Phase
from orchestrator.errors import OrchestratorError
from orchestrator.reactor.job import Job
from orchestrator.reactor.perform import Io

QUIET_PERIODS = 2  # without other news before the sign of life is looked at
SILENT_PERIODS = 6  # without any sign before a child is given up
WATCHED_PERIODS = 4  # of these at least, looks found the sign as it was
AT_ONCE = 32
ROUNDS = 3  # in a period: the one that decides shall not come late


@dataclass(eq=False, slots=True)
class _Child:
    """What is known of a child's silence; times on the loop's clock.

    Args:
        sign_at: Its last news or sign of life, as far as known.
        counted_to: Up to when its silence was counted.
        silent: Seconds without a sign in which one could have been read.
        watched: Seconds over which looks in a row found the same sign.
        is_left_alone: It was given up, or is of a version that gives no signs.
    """

    attempt: int
    sign_at: float
    counted_to: float
    sign: int | None = None
    looked: bool = False
    silent: float = 0.0
    watched: float = 0.0
    is_left_alone: bool = False


class Silence:
    """Looks at the signs of life of quiet children, every `job.times.alive` seconds.

    Args:
        post: Takes `FellSilent`; called from the loop that `run` runs in.
        read_at: The loop's time at which the records of the children were last read.
    """

    def __init__(
        self, job: Job, state: State, io: Io, post: Callable[[ev.Event], None], *, read_at: Callable[[], float]
    ) -> None:
        self._folder, self._state, self._io, self._post, self._read_at = job.folder, state, io, post, read_at
        self._period = 0.0 if job.pass_items.by_value else job.times.alive
        self._children: dict[int, _Child] = {}
        self._room = asyncio.Semaphore(AT_ONCE)

    def hear(self, event: ev.Event) -> None:
        """News of another kind shows that a child is alive, too."""
        if isinstance(event, ev.Progressed):
            batch, attempt = event.progress.batch, event.progress.attempt
        elif isinstance(event, (ev.Submitted, ev.RunSeen)):
            batch, attempt = event.batch, event.attempt
        else:
            return
        now = asyncio.get_running_loop().time()
        before = self._children.get(batch)
        self._children[batch] = child = _Child(attempt, now, now)
        if before is not None and before.attempt == attempt:
            child.sign, child.looked = before.sign, before.looked

    async def run(self) -> None:
        """Look again and again; ends at once when children give no signs."""
        while self._period:
            await asyncio.sleep(self._period / ROUNDS)
            await self.look_once()

    async def look_once(self) -> None:
        """One look at every running child that was quiet for a while, unless it was looked at in this period."""
        now = asyncio.get_running_loop().time()
        running: dict[int, _Child] = {}
        for index in self._state.active:
            batch = self._state.batches[index]
            if batch.stage is Stage.IN_FLIGHT and batch.phase is Phase.RUNNING:
                child = self._children.get(index)
                if child is None or child.attempt != batch.attempt:
                    child = _Child(batch.attempt, now, now)
                running[index] = child
        self._children = running
        quiet = [(index, child) for index, child in sorted(running.items()) if self._is_due(child, now)]
        await asyncio.gather(*(self._look_in_turn(index, child) for index, child in quiet))

    def _is_due(self, child: _Child, now: float) -> bool:
        if child.is_left_alone or now - child.sign_at < QUIET_PERIODS * self._period:
            return False
        since = now - child.counted_to
        return since >= self._period or child.silent + since >= SILENT_PERIODS * self._period

    async def _look_in_turn(self, index: int, child: _Child) -> None:
        async with self._room:
            await self._look(index, child)

    async def _look(self, index: int, child: _Child) -> None:
        now = asyncio.get_running_loop().time()
        try:
            sign = await self._io(self._folder.read_alive, index, child.attempt)
        except (OrchestratorError, OSError):
            child.counted_to, child.watched, child.looked = now, 0.0, False  # whether it says nothing, nobody knows
            return
        if self._children.get(index) is not child:
            return  # it gave news meanwhile
        if child.looked and sign != child.sign:
            child.sign_at, child.silent, child.watched = now, 0.0, 0.0
        else:
            # A gap far longer than a look's distance was spent asleep.
            passed = min(now - child.counted_to, (QUIET_PERIODS + 1) * self._period)
            child.silent += passed
            child.watched += passed if child.looked else 0.0
        child.sign, child.looked, child.counted_to = sign, True, now
        if self._is_over(child):
            await self._give_up(index, child)

    async def _give_up(self, index: int, child: _Child) -> None:
        try:
            # Without a sign, the ledger tells a process of an older version from one that died before it began.
            is_older = child.sign is None and await self._io(self._folder.has_begun, index, child.attempt)
        except (OrchestratorError, OSError):
            return
        child.is_left_alone = True
        if not is_older and self._children.get(index) is child:
            self._post(ev.FellSilent(index, child.attempt, round(child.silent, 3)))

    def _is_over(self, child: _Child) -> bool:
        """Whether a child was silent for so long that it is given up; and Prefect said since that it runs."""
        return (
            child.silent >= SILENT_PERIODS * self._period
            and child.watched >= WATCHED_PERIODS * self._period
            and self._read_at() >= child.sign_at + QUIET_PERIODS * self._period
        )
