"""Carrying out single commands: each ends as an event, whatever goes wrong on the way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

from orchestrator.core.machine import events as ev
from orchestrator.core.model import EndReason, Failure, ItemOutcome, Phase, Reading
from orchestrator.engine.gateway import CancelReply, Gateway
from orchestrator.engine.pace import Need, asking, reading
from orchestrator.errors import (
    EngineError,
    EngineUnavailableError,
    OrchestratorError,
    StorageError,
    StoreUnavailableError,
    SubmissionRefusedError,
    SubmissionUnknownError,
)
from orchestrator.reactor.boundaries import Boundary, passed
from orchestrator.reactor.job import Job
from orchestrator.reactor.reach import Reach
from orchestrator.store.bounded import within

P = ParamSpec("P")
T = TypeVar("T")
logger = logging.getLogger(__name__)

DAMAGED_SECONDS = 10.0  # how long a job folder that cannot be understood is read again
STOPPING_SECONDS = 30.0  # and one that is away, once the job stops
AT_ONCE_SECONDS = 3.0  # most that a stop waits for its own writing down


class Io:
    """Runs what blocks (the job folder) off the loop, at most so many at once; `inline` runs it at once, for tests."""

    def __init__(self, *, threads: int = 32, inline: bool = False) -> None:
        self._pool = None if inline else ThreadPoolExecutor(threads, thread_name_prefix="job-folder")

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._pool is None:
            return function(*args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*args, **kwargs))

    def at_once(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Before anything else happens on the loop; not for long, whatever the storage does.

        Raises:
            TimeoutError: it did not end in that time, and may still.
        """
        if self._pool is None:
            return function(*args, **kwargs)
        return within(AT_ONCE_SECONDS, function, *args, **kwargs)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


class Performer:
    """Performs commands about children through the gateway and the job folder.

    Args:
        post: Takes the events that come of it.
        nudge: Called when reading the children now would show something new.
        stopping: Whether the job stops: then a job folder that is away is not waited for so long.
        reach: Judges child runs that do not reach the job folder; None: they are attempts that were lost.
    """

    def __init__(
        self,
        job: Job,
        gateway: Gateway,
        io: Io,
        post: Callable[[ev.Event], None],
        nudge: Callable[[], None],
        stopping: Callable[[], bool] = lambda: False,
        reach: Reach | None = None,
    ) -> None:
        self._job, self._gateway, self._io, self._post, self._nudge = job, gateway, io, post, nudge
        self._stopping, self._reach = stopping, reach

    async def submit(self, command: ev.Submit) -> None:
        batch, attempt = command.batch, command.attempt
        try:
            submission = await self._io(self._job.submission, batch, attempt)
            if self._stopping():  # meanwhile: nothing is sent any more
                self._post(ev.SubmissionDeferred(batch, attempt))
                return
            passed(Boundary.SUBMIT_READY)
            run = await self._gateway.submit(submission, lambda: not self._stopping())
        except SubmissionUnknownError as e:
            passed(Boundary.SUBMIT_LOST)
            if e.over:
                await self.resolve(ev.Resolve(batch, attempt), is_over=True)
            else:
                self._post(ev.SubmissionLost(batch, attempt))
        except SubmissionRefusedError as e:
            self._post(ev.SubmissionRefused(batch, attempt, self._job.mask(str(e))))
        except (EngineUnavailableError, StoreUnavailableError) as e:
            logger.debug("Batch %d cannot be submitted now: %s", batch + 1, e)
            self._post(ev.SubmissionDeferred(batch, attempt))
        except OrchestratorError as e:
            # A server that does not understand us; or, where items go by value, staged items that are gone.
            self._post(ev.SubmissionRefused(batch, attempt, self._job.mask(str(e))))
        else:
            passed(Boundary.SUBMIT_ANSWERED)
            self._post(ev.Submitted(batch, attempt, run.id, run.phase, run.started))

    async def resolve(self, command: ev.Resolve, *, is_over: bool = False) -> None:
        """Ask whether a creation of unknown outcome was carried out.

        Args:
            is_over: It is not on its way any more: what is not there now was not created. The job still takes it for
                one that is being submitted.
        """
        batch, attempt = command.batch, command.attempt
        key = self._job.key(batch, attempt)
        passed(Boundary.RESOLVE_READY)
        try:
            flow_id = self._job.deployment_of(batch).flow_id
            runs = await reading(lambda: self._gateway.find_by_keys(flow_id, [key]), self._stopping)
        except EngineError:
            self._post((ev.SubmissionLost if is_over else ev.SubmissionDeferred)(batch, attempt))
            return
        passed(Boundary.RESOLVE_ANSWERED)
        if (run := runs.get(key)) is None:
            self._post((ev.SubmissionDeferred if is_over else ev.SubmissionAbsent)(batch, attempt))
        else:
            self._post(ev.Submitted(batch, attempt, run.id, run.phase, run.started))

    async def cancel(self, command: ev.Cancel) -> None:
        """Ask until Prefect has taken every request; what becomes of them is read, not believed."""
        with asking(Need.CANCEL):
            await self._cancel(command)

    async def _cancel(self, command: ev.Cancel) -> None:
        left, pause, look = list(command.runs), 0.5, command.spare_running
        while left:
            try:
                if look:
                    # What the parent knows may be a poll old. In a moment is soon enough for those that run.
                    seen = await self._gateway.read_runs(left)
                    running = tuple(r for r in left if r in seen and seen[r].phase is Phase.RUNNING)
                    left = [r for r in left if r not in running]
                    if running:
                        passed(Boundary.SPARED)
                        self._post(ev.Spared(running))
                    if not left:
                        return
                passed(Boundary.CANCEL_READY)
                replies = await self._gateway.request_cancel(left)
            except EngineError as e:
                logger.debug("%d child runs cannot be cancelled now: %s", len(left), e)
            else:
                passed(Boundary.CANCEL_SENT)
                left = [r for r in left if r not in replies]
                if any(reply is not CancelReply.REQUESTED for reply in replies.values()):
                    self._nudge()
            if left:
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)

    async def recall(self, command: ev.Recall) -> None:
        """Write down why, then ask; where it cannot be written, a later parent may think that somebody else asked."""
        batch, attempt = command.batch, command.attempt
        try:
            await self._io(self._job.folder.write_recalled, batch, attempt, command.reason, command.silent)
        except (OrchestratorError, OSError) as e:
            logger.debug("Why batch %d is given up cannot be written now: %s", batch + 1, e)
        passed(Boundary.RECALL_WRITTEN)
        await self.cancel(ev.Cancel((command.run,)))

    async def close(self, command: ev.Close) -> None:
        """Read what the ledger says; tried again while the job folder is away, for a bounded time."""
        batch, attempt = command.batch, command.attempt
        loop = asyncio.get_running_loop()
        began, pause = loop.time(), 0.2
        while True:
            try:
                reading = await self._io(read_attempt, self._job, batch, attempt, command.phase, command.how)
                stopped = reading.reason is EndReason.STOPPED or (
                    reading.reason is None and command.phase is Phase.CANCELLED  # perhaps before its ledger was opened
                )
                stop = await self._io(self._job.folder.read_stop) if stopped else None
            except (OrchestratorError, OSError) as e:
                if loop.time() - began >= self._patience(e):
                    self._post(ev.CloseFailed(batch, attempt, self._job.mask(str(e))))
                    return
                logger.debug("The outcomes of batch %d cannot be read now: %s", batch + 1, e)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)
            else:
                passed(Boundary.ATTEMPT_CLOSED)
                if self._reach is not None and self._reach.concerns(command):
                    cut_off = await self._io(self._reach.judge, command)
                    if cut_off is not None:
                        self._post(ev.StopRequested(cut_off))
                if stop is not None:  # the child saw it first: without it, a batch that was stopped would go on
                    self._post(ev.StopRequested(stop, written=True))
                self._post(ev.Closed(batch, attempt, reading))
                return

    def _patience(self, error: Exception) -> float:
        times = self._job.times
        if isinstance(error, StorageError):  # something else than what was written there: that does not pass
            return min(DAMAGED_SECONDS, times.store_patience)
        return min(STOPPING_SECONDS, times.store_patience) if self._stopping() else times.store_patience


def read_attempt(job: Job, batch: int, attempt: int, phase: Phase | None, how: str = "") -> Reading:
    """What is known of an attempt that is over; of a flow that is not ours, its state speaks for its items.

    Args:
        how: How its run died, for the next attempt.
    """
    reading = _read_attempt(job, batch, attempt, phase, how)
    if (first := reading.counts.first_failure) is None:
        return reading
    # In the ledger a key is the user's data; here it is on its way to logs, pages and events.
    first = replace(first, key=job.mask(first.key), text=job.mask(first.text))
    return replace(reading, counts=replace(reading.counts, first_failure=first))


def _read_attempt(job: Job, batch: int, attempt: int, phase: Phase | None, how: str) -> Reading:
    count, folder = job.batches[batch].count, job.folder
    if not job.pass_items.by_value:
        return folder.close_attempt(batch, count, attempt, how)
    if phase is Phase.COMPLETED:
        return folder.close_by_value(batch, count, attempt, ItemOutcome.SUCCEEDED, None)
    if phase is Phase.FAILED:
        first = job.batches[batch].start
        failure = Failure(first, str(first), "ChildRunFailed", "the child run failed; its page says why")
        return folder.close_by_value(batch, count, attempt, ItemOutcome.FAILED, failure)
    return folder.close_by_value(batch, count, attempt, ItemOutcome.UNKNOWN, None)


Tasks = dict[asyncio.Task[Any], None]
"""Tasks in the order in which they began: a set's order would differ from one run of a seed to the next."""


def in_background(tasks: Tasks, work: Awaitable[Any], failed: Callable[[BaseException], None]) -> asyncio.Task[Any]:
    """Start a task that is kept until it ends; an exception nobody expected goes to `failed`."""
    task: asyncio.Task[Any] = asyncio.ensure_future(work)
    tasks[task] = None

    def ended(done: asyncio.Task[Any]) -> None:
        tasks.pop(done, None)
        if not done.cancelled() and (error := done.exception()) is not None:
            failed(error)

    task.add_done_callback(ended)
    return task
