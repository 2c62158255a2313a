"""News of children: listening is a hint, reading the record is the truth.

One long wait per child for up to `max_waits` of them, and one reading of all children in flight every few seconds. The
reading alone is enough (websockets may be refused, events lost, waits may never return); the waits make it quick.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from orchestrator.core.machine import Stage, State
from orchestrator.core.machine import events as ev
from orchestrator.core.model import UNREACHABLE, Phase, RunId
from orchestrator.engine.gateway import Gateway, Run
from orchestrator.engine.pace import reading
from orchestrator.errors import EngineError
from orchestrator.reactor.boundaries import Boundary, passed

WAIT_SECONDS = 6 * 3600.0
QUIET_SECONDS = 300.0
RUNS_PER_REQUEST, NEWS_PER_REQUEST = 200, 100  # as the gateway asks for them
SECONDS_PER_REQUEST = 2.0  # of readings of very many runs: half of the 60 requests a minute that a job may make besides
CHILDREN_PER_SECOND = 20  # whose progress is read anew: each gives news once in a tenth of a second times their number
READING_SHARE, STOPPING_SHARE = 0.25, 0.75  # of a budget of requests; once nothing is created any more, most of it
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 300.0  # between two waits for one child
SOON_SECONDS = 0.5  # after a nudge the next reading: several waits often end together
DIED_CHARS = 200  # most of how a run died
SAID_CHARS = 1200  # most of why one does not reach the job folder
logger = logging.getLogger(__name__)


class Watch:
    """Listens to and reads the children in flight, and posts what it learns.

    Args:
        post: Takes each event; called from the loop the watch runs in.
        poll_seconds: Least time between two readings of everything; doubled after five minutes without news, longer
            where one takes several requests.
        max_waits: Most children listened to at once; 0 for none.
        own: The parent's own run, read with the children: whether it is cancelled is otherwise told by its worker
            alone, which may be dead.
        cancelled: What happens then, given the run's name.
    """

    def __init__(
        self, state: State, gateway: Gateway, post: Callable[[ev.Event], None], *, poll_seconds: float, max_waits: int,
        own: RunId | None = None, cancelled: Callable[[str], ev.Event] | None = None,
    ) -> None:  # fmt: skip
        self._state, self._gateway, self._post = state, gateway, post
        self._poll, self._max_waits = poll_seconds, max_waits
        self._own, self._cancelled, self._own_ran = own, cancelled, False
        self._waits: dict[int, asyncio.Task[None]] = {}
        self._soon = min(SOON_SECONDS, poll_seconds)
        self._missed: dict[RunId, float] = {}  # runs that were not returned: when that was seen first
        self._nudged = asyncio.Event()
        self._last_news = 0.0
        self._pages, self._cost = 1, 1  # requests of the last reading: for the runs alone, with their progress
        self._progress_due = 0.0
        self.unreachable_since: float | None = None
        self.read_at = 0.0  # the loop's time at which the last reading that succeeded began

    def nudge(self) -> None:
        """Read soon: something is known to have changed."""
        self._nudged.set()

    # ------------------------------------------------------------------ listening

    def listen(self, batch: int, attempt: int, run: RunId) -> None:
        """Begin a wait for a child, if there is room for one."""
        if batch not in self._waits and len(self._waits) < self._max_waits:
            task = asyncio.create_task(self._wait(batch, attempt, run), name=f"wait {batch}/{attempt}")
            self._waits[batch] = task

    def forget(self, batch: int) -> None:
        """A child's end was read: its wait has no purpose any more; another child takes its place."""
        if (task := self._waits.pop(batch, None)) is not None:
            task.cancel()
        if len(self._waits) < self._max_waits:
            for index in self._state.active - self._waits.keys():
                other = self._state.batches[index]
                if other.run is not None and other.stage in (Stage.IN_FLIGHT, Stage.STOPPING):
                    self.listen(index, other.attempt, other.run)
                    break

    async def _wait(self, batch: int, attempt: int, run: RunId) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            before = asyncio.get_running_loop().time()
            try:
                seen = await self._gateway.wait(run, WAIT_SECONDS)
            except Exception as e:  # noqa: BLE001 - whatever ends a wait says nothing of the run: reading decides
                logger.debug("Listening to a child run of batch %d ended: %s", batch + 1, e)
                seen = None
            if seen is not None and seen.phase.is_terminal:
                self._post(_news(batch, attempt, seen))
                return
            # The wait ended without an end: perhaps there was one. Let the reading decide, and listen again. One that
            # fails again and again (websockets refused) is no news: it costs requests, and the reading is enough.
            if pause == FIRST_PAUSE_SECONDS:
                self._nudged.set()
            lasted = asyncio.get_running_loop().time() - before
            pause = FIRST_PAUSE_SECONDS if lasted > 60 else min(pause * 2, LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))

    # ------------------------------------------------------------------ reading

    async def run(self) -> None:
        """Read all children in flight again and again; never ends by itself."""
        loop = asyncio.get_running_loop()
        self._last_news = began = loop.time()
        while True:
            await self._wait_for_turn(began)
            self._nudged.clear()
            began = loop.time()
            try:
                await reading(self.read_once, lambda: self._state.cancelling)
                self.unreachable_since, self.read_at = None, began
            except EngineError:
                # An outage: keep asking, the job goes on when it is over.
                self.unreachable_since = self.unreachable_since or loop.time()

    async def _wait_for_turn(self, before: float) -> None:
        """Wait until the next reading is due: after a while or soon after a nudge, later where requests are few.

        Args:
            before: When the last one began.
        """
        loop = asyncio.get_running_loop()
        quiet = loop.time() - self._last_news > QUIET_SECONDS
        pause = max(self._poll, self._pages * SECONDS_PER_REQUEST if self._pages > 1 else 0.0)
        due, nudged = loop.time() + pause * (2 if quiet else 1), False
        while True:
            share = READING_SHARE if self._state.stop is None else STOPPING_SHARE
            left = max(due, before + self._gateway.pace.least_seconds(self._cost, share)) - loop.time()
            try:
                # Not `wait_for`: up to Python 3.11 it loses a cancel that comes while what it waits for happens.
                async with asyncio.timeout(left):
                    await self._nudged.wait()
            except TimeoutError:
                return
            self._nudged.clear()
            if not nudged:
                due, nudged = loop.time() + self._soon, True

    async def read_once(self) -> None:
        """One reading of every child in flight, and of the progress of those that run."""
        asked = {
            b.run: (b.index, b.attempt)
            for b in (self._state.batches[i] for i in sorted(self._state.active))
            if b.run is not None and b.stage in (Stage.IN_FLIGHT, Stage.STOPPING)
        }
        if not asked:
            return
        self._pages = self._cost = -(-(len(asked) + 1) // RUNS_PER_REQUEST)
        runs = await self._gateway.read_runs([*asked, *([self._own] if self._own else [])])
        if self._own is not None and (own := runs.get(self._own)) is not None:
            self._look_at_own(own)
        passed(Boundary.CHILDREN_READ)
        running: list[RunId] = []
        for run_id, (batch, attempt) in asked.items():
            seen = runs.get(run_id)
            if seen is None:
                # Twice, because a replica may lag behind the server that created it; and not at the same moment, when a
                # reading that waited for its turn is asked anew.
                now = asyncio.get_running_loop().time()
                if now - self._missed.setdefault(run_id, now) >= self._soon / 2:
                    del self._missed[run_id]
                    self._news(ev.RunVanished(batch, attempt))
                else:
                    self._nudged.set()
                continue
            self._missed.pop(run_id, None)
            known = self._state.batches[batch]
            if (seen.phase, seen.state_name) != (known.phase, known.state_name) or seen.started != known.started:
                self._news(_news(batch, attempt, seen))
            if seen.phase in (Phase.RUNNING, Phase.CANCELLING, Phase.PAUSED):
                running.append(run_id)
        told = self._state.cancelling and self._gateway.pace.per_minute  # soon, by the job folder
        now = asyncio.get_running_loop().time()
        if running and not told and now >= self._progress_due:
            self._progress_due = now + len(running) / CHILDREN_PER_SECOND
            self._cost += -(-len(running) // NEWS_PER_REQUEST)
            for progress in await self._gateway.read_progress(running):
                if 0 <= progress.batch < len(self._state.batches):
                    known = self._state.batches[progress.batch]
                    if progress.attempt == known.attempt and progress.sequence > known.sequence:
                        self._news(ev.Progressed(progress))

    def _look_at_own(self, run: Run) -> None:
        self._own_ran = self._own_ran or run.phase is Phase.RUNNING
        # Once it was seen to run: whoever finishes a job for a parent that was cancelled is not cancelled itself.
        if self._own_ran and self._cancelled is not None and run.phase in (Phase.CANCELLING, Phase.CANCELLED):
            self._own = None
            self._news(self._cancelled(run.name))

    def _news(self, event: ev.Event) -> None:
        self._last_news = asyncio.get_running_loop().time()
        self._post(event)

    async def close(self) -> None:
        """End all waits."""
        tasks = list(self._waits.values())
        self._waits.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _news(batch: int, attempt: int, run: Run) -> ev.RunSeen:
    return ev.RunSeen(batch, attempt, run.phase, run.started, run.state_name, _how_it_died(run))


def _how_it_died(run: Run) -> str:
    """ "Process exited with status code: -9": the first sentence of what Prefect says of a crash.

    Source: prefect runner/_flow_run_executor.py, 3.8.8.
    """
    if run.phase is Phase.FAILED and run.state_name == UNREACHABLE:
        return " ".join((run.message or "").split())[:SAID_CHARS]  # it has no other place to say it
    if run.phase is not Phase.CRASHED or not run.message:
        return ""
    return " ".join(run.message.split()).partition(". ")[0].rstrip(".")[:DIED_CHARS]
