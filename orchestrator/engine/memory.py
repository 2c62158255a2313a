"""A gateway without a server: deterministic, scriptable, in virtual time if one likes.

Passes the same contract suite as the gateway to Prefect, and ships, so that users can test their own flows with it.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.core.model import Phase, Progress, RunId
from orchestrator.engine.faults import Faults, SubmitFault, WaitFault
from orchestrator.engine.gateway import CancelReply, Capacity, Deployment, Run, Submission, always
from orchestrator.engine.leftovers import JOB_TAG, TAG, ExpectedParent, TaggedRun
from orchestrator.engine.pace import Need, NotWantedError, Pace, asking
from orchestrator.engine.simulated import INSTANT, TYPICAL, Child, Latencies, SimulatedRun
from orchestrator.engine.simulation import SimulatedEngine
from orchestrator.engine.transitions import Answer
from orchestrator.errors import (
    DeploymentNotFoundError,
    EngineUnavailableError,
    SubmissionRefusedError,
    SubmissionUnknownError,
)

__all__ = ["INSTANT", "Child", "Faults", "Latencies", "MemoryGateway", "SimulatedEngine", "SimulatedRun", "complete"]

_PAGE, _PROGRESS_PAGE = 200, 100  # as the real door asks
_CANCEL_CHUNK = 50
_BUSY_RETRIES = 20


async def complete(run: SimulatedRun) -> Phase:
    """A child that does nothing and does it well."""
    return Phase.COMPLETED


class MemoryGateway:
    """The parent's door to a `SimulatedEngine`; see `gateway.Gateway` for what each method promises.

    Args:
        child: What every child run does. Ignored when `engine` is given.
        capacity, latencies, faults: Of the engine made for it.
        engine: Share this one (a second parent, or a parent started again).
        submit_concurrency: Creations under way at once.
        pace: When a request may be sent.
    """

    def __init__(
        self,
        child: Child = complete,
        *,
        capacity: int | None = None,
        latencies: Latencies = TYPICAL,
        faults: Faults | None = None,
        engine: SimulatedEngine | None = None,
        submit_concurrency: int = 1,
        pace: Pace | None = None,
    ) -> None:
        self.engine = engine or SimulatedEngine(child, capacity=capacity, latencies=latencies, faults=faults)
        self.requests = 0
        self.pace = pace or Pace()
        self._creating = asyncio.Semaphore(submit_concurrency)

    @property
    def faults(self) -> Faults:
        return self.engine.faults

    async def find_deployment(self, name: str) -> Deployment:
        await self._ask("find_deployment")
        known = self.engine.deployments
        for deployment in known.values():
            if name in (deployment.name, deployment.id):
                return deployment
        raise DeploymentNotFoundError(name, difflib.get_close_matches(name, known, n=3, cutoff=0.5))

    async def capacity(self, deployment: Deployment, work_queue_name: str | None = None) -> Capacity:
        await self._ask("capacity", requests=3)
        limit = self.engine.capacity
        by = None if limit is None else f"work pool '{deployment.pool}' (limit {limit})"
        return Capacity(limit=limit, limited_by=by, pool_paused=self.engine.paused, workers_online=1, pool_limit=limit)

    async def submit(self, submission: Submission, wanted: Callable[[], bool] = always) -> Run:
        async with self._creating:
            try:
                with asking(Need.CREATE, wanted):
                    return await self._submit(submission, wanted)
            except NotWantedError as error:
                raise EngineUnavailableError("no child run is wanted any more; none was created.") from error

    async def _submit(self, submission: Submission, wanted: Callable[[], bool]) -> Run:
        for tried in range(_BUSY_RETRIES):
            await self._ask("submit")
            if not wanted():
                raise NotWantedError
            fault = self.faults.submit()
            if fault is SubmitFault.BUSY:
                await asyncio.sleep(min(1.0, 0.05 * 2**tried))
                continue
            return await self._create(submission, fault)
        raise EngineUnavailableError("Prefect's API answers 503 to every creation; its database is overloaded.")

    async def _create(self, submission: Submission, fault: SubmitFault | None) -> Run:
        latencies = self.engine.latencies
        await self._send()
        if fault is SubmitFault.UNAVAILABLE:
            raise EngineUnavailableError("Prefect's API cannot be reached (simulated).")
        if fault is SubmitFault.REFUSED:
            raise SubmissionRefusedError("Prefect refused the child run (simulated).")
        if fault is SubmitFault.LATE:
            self.engine.send(submission, latencies.request + self.faults.late_seconds)
        if fault in (SubmitFault.LATE, SubmitFault.LOST_REQUEST):
            raise SubmissionUnknownError("the creation was not answered (simulated).", key=submission.key)
        run = await self.engine.send(submission, latencies.request)
        if run is None:
            raise SubmissionRefusedError(f"the deployment {submission.deployment.name!r} does not exist any more.")
        if fault is SubmitFault.LOST_ANSWER:
            raise SubmissionUnknownError("the creation was not answered (simulated).", key=submission.key)
        if run.deployment_id != submission.deployment.id:
            raise SubmissionRefusedError(f"the key {submission.key!r} belongs to a run of another deployment.")
        return run

    async def find_by_keys(self, flow_id: str, keys: Sequence[str]) -> Mapping[str, Run]:
        await self._ask("find_by_keys", requests=_pages(keys, _PAGE))
        ids = {key: self.engine.id_of(flow_id, key) for key in keys}
        found = {key: run for key, id_ in ids.items() if id_ is not None and (run := self.engine.read(id_)) is not None}
        await self._way_back()
        return found

    async def read_runs(self, ids: Sequence[RunId]) -> Mapping[RunId, Run]:
        await self._ask("read_runs", requests=_pages(ids, _PAGE))
        found = {id_: run for id_ in ids if (run := self.engine.read(id_)) is not None}
        await self._way_back()
        return found

    async def wait(self, run_id: RunId, timeout_seconds: float) -> Run | None:
        with asking(Need.LISTEN):
            return await self._wait(run_id, timeout_seconds)

    async def _wait(self, run_id: RunId, timeout_seconds: float) -> Run | None:
        await self._ask("wait", requests=2)
        fault = self.faults.wait()
        if fault is WaitFault.EARLY:
            return None
        if fault is WaitFault.RAISES:
            raise EngineUnavailableError("the connection to Prefect's API was lost (simulated).")
        if fault is WaitFault.NOT_FINAL:
            return self.engine.read(run_id)
        if fault is WaitFault.NEVER:
            await asyncio.sleep(timeout_seconds)
            return None
        # A run that is gone already is told at once; one deleted later falls silent, as with Prefect.
        if (ended := self.engine.listen(run_id)) is None:
            return None
        if not ended.done():
            try:
                await asyncio.wait([ended], timeout=timeout_seconds)
                if not ended.done():
                    return None
            finally:
                ended.cancel()
            await asyncio.sleep(self.engine.latencies.news)
        await self._send()
        run = self.engine.read(run_id)
        return run if run is not None and run.phase.is_terminal else None

    async def request_cancel(self, ids: Sequence[RunId]) -> Mapping[RunId, CancelReply]:
        replies: dict[RunId, CancelReply] = {}
        for start in range(0, len(ids), _CANCEL_CHUNK):
            chunk = ids[start : start + _CANCEL_CHUNK]
            try:
                with asking(Need.CANCEL):
                    await self._ask("request_cancel")
            except EngineUnavailableError:
                if self.faults.coin():  # carried out, and nobody told us
                    for id_ in chunk:
                        self.engine.cancel(id_)
                raise
            replies.update((id_, self._cancel(id_)) for id_ in chunk)
        return replies

    def _cancel(self, run_id: RunId) -> CancelReply:
        result = self.engine.cancel(run_id)
        if result is None:
            return CancelReply.GONE
        said, phase = result
        if phase is Phase.CANCELLED and said is Answer.REJECT:
            return CancelReply.CANCELLED
        return CancelReply.REQUESTED if phase is Phase.CANCELLING else CancelReply.ENDED

    async def read_progress(self, ids: Sequence[RunId]) -> Sequence[Progress]:
        await self._ask("read_progress", requests=_pages(ids, _PROGRESS_PAGE))
        found = [progress for id_ in ids for progress in self.engine.progress_of(id_)]
        await self._way_back()
        return found

    async def publish_page(self, run_id: RunId | None, key: str, markdown: str) -> None:
        with asking(Need.SHOW):
            await self._ask("publish_page")
        self.engine.pages[(run_id, key)] = markdown

    async def add_to_page(self, run_id: RunId, key: str, line: str) -> None:
        with asking(Need.SHOW):
            await self._ask("add_to_page")
        page = self.engine.pages.get((run_id, key))
        if page is not None and line not in page:
            self.engine.pages[(run_id, key)] = f"{page}\n\n{line}"

    async def emit(self, event: str, job_id: str, payload: Mapping[str, Any]) -> None:
        self.engine.events.append((event, job_id, dict(payload)))

    async def close(self) -> None:
        """Nothing to release: the engine and its children go on."""

    async def _ask(self, method: str, requests: int = 1) -> None:
        for _ in range(requests):
            await self._send()
        await asyncio.sleep(self.engine.latencies.request * requests)
        if self.faults.is_out(method, self.engine.now()):
            raise EngineUnavailableError("Prefect's API cannot be reached (simulated).")

    async def _send(self) -> None:
        """One request, sent again and again while it is answered by 429."""
        while True:
            await self.pace.take()
            self.requests += 1
            if not self.faults.turns_away(self.engine.now()):
                return
            await asyncio.sleep(self.engine.latencies.request)
            self.pace.hold(self.faults.retry_after)

    async def _way_back(self) -> None:
        """The way back of an answer: what it says may be over when it arrives."""
        if self.faults.read() is not None:
            await asyncio.sleep(self.faults.slowness())


class MemoryLeftovers:
    """`leftovers.Leftovers` of a simulated engine; see there. Parents are no runs of it: none is ever to come."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self.engine = engine

    async def unended_children(self) -> list[TaggedRun]:
        found = []
        for run in self.engine.runs():
            tags = self.engine.tags_of(run.id)
            if not run.phase.is_terminal and TAG in tags:
                found += [TaggedRun(run, tag.removeprefix(JOB_TAG)) for tag in tags if tag.startswith(JOB_TAG)]
        return found

    async def expected_parents(self, flow_name: str) -> list[ExpectedParent]:
        return []

    async def flow_id(self, flow_name: str) -> str | None:
        known = (d for d in self.engine.deployments.values() if d.flow_name == flow_name)
        return next((deployment.flow_id for deployment in known), None)

    async def close(self) -> None:
        """Nothing to release."""


def _pages(asked: Sequence[object], size: int) -> int:
    return -(-len(asked) // size)
