"""What people see of a running job: its live page, progress lines, first failures, events, and what it waits for.

Nothing here decides anything: whatever goes wrong with it, the job goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from orchestrator.core.machine import State
from orchestrator.core.machine import events as ev
from orchestrator.core.report import Report
from orchestrator.engine.gateway import Gateway
from orchestrator.engine.pace import Need, asking
from orchestrator.reactor.children import Watched
from orchestrator.reactor.job import Job
from orchestrator.reactor.page import Links, live_page, page_key, report_page
from orchestrator.reactor.trouble import FolderTrouble
from orchestrator.reactor.view import JobView, Rate, look, nothing_runs

SHOWN_FAILURES = 20
LAST_PAGE_PAUSES = (1.0, 2.0, 4.0)
PAGE_SECONDS = 30.0  # for each try; the report lies in the job folder by the time of the last page
AWAY = "Prefect's API does not answer; the job goes on once it does"
PAGE_SHARE = 0.1  # of a budget of requests
WAITING_SECONDS = 10.0  # so long a start may take before somebody asks what holds it up


class Showing:
    """Shows one job.

    Args:
        state: Only read.
        on_view: The caller's own; called with a snapshot about once a second.
        trouble: What keeps the parent from its job folder.
        is_away: Whether Prefect's API does not answer now.
    """

    def __init__(
        self,
        job: Job,
        state: State,
        gateway: Gateway,
        log: logging.Logger | logging.LoggerAdapter[Any],
        *,
        on_view: Callable[[JobView], None] | None,
        trouble: FolderTrouble,
        is_away: Callable[[], bool],
    ) -> None:
        self._job, self._state, self._gateway, self._log, self._on_view = job, state, gateway, log, on_view
        self._trouble, self._is_away = trouble, is_away
        self._rate = Rate()
        self._children = Watched()
        self._page = asyncio.Lock()  # an older page that is tried again must not come after a newer one
        self._over = False
        self._told: set[int] = set()  # batches whose first failure was logged
        self._waiting_for: str | None = None
        self._waiting_since: float | None = None

    # ------------------------------------------------------------------ told by the loop

    def before(self, event: ev.Event, at: float) -> None:
        """An event is about to be played, `at` seconds after the parent began."""
        self._children.see(event, at)

    def settled(self, batch: int, attempt: int) -> None:
        """A batch is over."""
        self._children.settle(batch, attempt, self._state.batches[batch].run, self._state.tally.now)

    def after(self, event: ev.Event) -> None:
        """An event was played."""
        if isinstance(event, ev.ControlChanged):
            for line in self._state.standing.latest:
                self._log.info("Job %s %s.", self._job.id, line)
        self._tell_failures(event)

    def _tell_failures(self, event: ev.Event) -> None:
        """A warning for the first failure of each of the first batches that have one."""
        index = event.progress.batch if isinstance(event, ev.Progressed) else getattr(event, "batch", None)
        if index is None or not isinstance(event, (ev.Progressed, ev.Closed)) or len(self._told) > SHOWN_FAILURES:
            return
        batch = self._state.batches[index]
        first = batch.counts.first_failure if batch.counts else None
        if first is None or index in self._told:
            return
        self._told.add(index)
        if len(self._told) > SHOWN_FAILURES:
            self._log.warning("Further failures are counted, not shown; the report has them all.")
            return
        self._log.warning("Batch %d: %s failed: %s: %s", index + 1, first.item, first.type, first.text)

    # ------------------------------------------------------------------ by itself

    async def run(self) -> None:
        """Renew the page and say how it goes."""
        loop = asyncio.get_running_loop()
        logged = loop.time()
        while True:
            await asyncio.sleep(max(self._job.times.page, self._gateway.pace.least_seconds(1, PAGE_SHARE)))
            try:
                async with asyncio.timeout(PAGE_SECONDS):
                    with asking(Need.SHOW):
                        await self._find_what_it_waits_for()
            except Exception as e:  # noqa: BLE001 - for people only: whatever is wrong with it, the job goes on
                self._log.debug("What the job waits for cannot be told now: %s", e)
            await self.publish()
            if loop.time() - logged >= self._job.times.log:
                logged = loop.time()
                view = self._look()
                self._log.info(
                    "%d of %d items over: %d succeeded, %d failed; %d of %d batches over, %d in flight.%s",
                    view.settled, view.total, view.succeeded, view.failed, view.batches_settled, view.batches_total,
                    sum(view.in_flight.values()), f" Waiting: {view.waiting_for}" if view.waiting_for else "",
                )  # fmt: skip

    async def _find_what_it_waits_for(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._trouble.now is not None or self._is_away():
            return
        if not nothing_runs(self._state):
            self._waiting_for, self._waiting_since = None, None
        elif self._waiting_since is None:
            self._waiting_since = now
        elif self._waiting_for is None and now - self._waiting_since >= WAITING_SECONDS:
            # Asked once per time of waiting: the answer is for people, and requests are counted.
            deployment = next(iter(self._job.deployments.values()))
            capacity = await self._gateway.capacity(deployment, self._job.work_queue_name)
            if capacity.pool_paused:
                self._waiting_for = "the work pool or its queue is paused"
            elif capacity.workers_online == 0:
                self._waiting_for = "no worker polls the work pool"
            elif capacity.limited_by is not None:
                self._waiting_for = f"capacity ({capacity.limited_by})"
            else:
                self._waiting_for = "the child runs are being started"

    def _look(self) -> JobView:
        at = asyncio.get_running_loop().time()
        rate = self._rate.read(at, self._state.tally.succeeded + self._state.tally.failed)
        # A page is a request itself: what holds things up is asked for at the last moment.
        away = AWAY if self._is_away() else None
        waiting_for = self._trouble.now or self._gateway.pace.words() or away or self._waiting_for
        return look(self._state, self._job.id, rate, waiting_for)

    def tell_view(self) -> None:
        """Give the caller a snapshot."""
        if self._on_view is None:
            return
        try:
            self._on_view(self._look())
        except Exception as e:  # noqa: BLE001 - the caller's own code: no reason to end a job
            self._on_view = None
            self._log.warning("on_progress raised %s: %s. It is not called any more.", type(e).__name__, e)

    async def publish(self) -> None:
        """Renew the live page, if it can be."""
        async with self._page:
            if not self._over and (error := await self._try_page(self._live_page)) is not None:
                self._log.debug("The page cannot be renewed now: %s", error)

    async def publish_report(self, report: Report) -> None:
        """The last page; it stays, so it is worth several tries."""

        def last() -> str:
            return report_page(report, self._state, self._links(), self._job.first)

        self._over = True
        async with self._page:
            for pause in LAST_PAGE_PAUSES:
                if await self._try_page(last) is None:
                    return
                await asyncio.sleep(pause)
            if (error := await self._try_page(last)) is not None:
                self._log.warning("The page could not be brought up to date: %s", error)

    async def _try_page(self, page: Callable[[], str]) -> Exception | None:
        try:
            async with asyncio.timeout(PAGE_SECONDS):  # a Prefect that wants no requests must not hold an end up
                await self._gateway.publish_page(self._job.page_run, page_key(self._job.id), page())
        except Exception as e:  # noqa: BLE001 - for people only: whatever is wrong with it, the job goes on
            return e
        return None

    def _live_page(self) -> str:
        return live_page(
            self._look(), self._job.name, self._state.window, self._job.folder.url, self._links(), self._job.first
        )

    def _links(self) -> Links:
        children = self._children.worth_a_look(self._state)
        return [(c, self._job.run_name(c.batch, c.attempt), self._job.run_url(c.run)) for c in children]

    async def emit(self, event: str, payload: dict[str, Any]) -> None:
        """Tell Prefect's automations; never raises."""
        try:
            async with asyncio.timeout(PAGE_SECONDS):  # the first one waits for its turn
                await self._gateway.emit(f"orchestrator.job.{event}", self._job.id, payload)
        except TimeoutError:
            self._log.debug("The event that the job %s could not be emitted.", event)
