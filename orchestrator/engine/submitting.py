"""Creating child runs: one at a time, retried at once while the database is locked, verified.

Two creations at a time make SQLite answer 503 to one in four, four at a time to two in five; one at a time is quicker
than either. Source: engine-facts 1.7, measured on Prefect 3.8.8.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import UUID

import httpx
from prefect.client.schemas.objects import FlowRun as PrefectRun
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound

from orchestrator.engine.connection import Connection, pause_before_retry
from orchestrator.engine.gateway import Submission, always
from orchestrator.engine.pace import Need, NotWantedError, asking
from orchestrator.engine.translate import (
    BusyError,
    is_passing,
    is_unreachable,
    reason,
    translate,
    was_never_sent,
    was_turned_away,
)
from orchestrator.errors import EngineUnavailableError, SubmissionRefusedError, SubmissionUnknownError

_BUDGET_SECONDS = 20.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


class Submitter:
    """Creates child runs through one connection.

    Args:
        concurrency: Creations under way at once.
    """

    def __init__(self, connection: Connection, concurrency: int) -> None:
        self._connection = connection
        self._turn = asyncio.Semaphore(concurrency)

    async def submit(self, submission: Submission, wanted: Callable[[], bool] = always) -> PrefectRun:
        """The run of that key, created now or earlier; see `gateway.Gateway.submit` for the errors."""
        async with self._turn:
            run = await self._create(submission, wanted)
        self._verify(run, submission)
        return run

    async def _create(self, submission: Submission, wanted: Callable[[], bool]) -> PrefectRun:
        loop = asyncio.get_running_loop()
        deadline: float | None = None  # from the first failure on: a creation may wait long for its turn
        pause, maybe_sent, over = _FIRST_PAUSE, False, True
        masker = self._connection.masker
        while True:
            if not wanted():  # it waited for its turn, or for a database that is locked, and the job stopped meanwhile
                if maybe_sent:
                    raise SubmissionUnknownError(
                        "the creation was given up: nobody knows whether the child run exists",
                        key=submission.key, over=over,
                    )  # fmt: skip
                raise EngineUnavailableError("no child run is wanted any more; none was created")
            try:
                with asking(Need.CREATE, wanted):
                    return await self._ask(submission)
            except NotWantedError:
                continue
            except Exception as error:
                if not is_passing(error):
                    if isinstance(error, ObjectNotFound):
                        raise SubmissionRefusedError(
                            f"the deployment {submission.deployment.name!r} does not exist any more; deploy it again."
                        ) from error
                    if isinstance(error, httpx.HTTPStatusError):
                        raise SubmissionRefusedError(
                            f"Prefect refused a child run of {submission.deployment.name!r}: {reason(error, masker)}"
                        ) from error
                    raise translate(error, "create a child run", masker) from error
                if was_turned_away(error):
                    continue  # it did nothing, and the next try waits for as long as Prefect wants
                if not was_never_sent(error):
                    maybe_sent = True
                    over = over and isinstance(error, BusyError) and error.is_prefects
                deadline = deadline or loop.time() + _BUDGET_SECONDS
                # Tried long enough: a timeout took its minute already, and without a server there is no hurry.
                hopeless = isinstance(error, httpx.TimeoutException) or is_unreachable(error)
                if hopeless or loop.time() + pause > deadline:
                    if maybe_sent:
                        raise SubmissionUnknownError(
                            f"nobody knows whether a child run was created: {reason(error, masker)}",
                            key=submission.key, over=over,
                        ) from error  # fmt: skip
                    raise translate(error, "create a child run", masker) from error
                await asyncio.sleep(pause_before_retry(error, pause))
                pause = min(_LONGEST_PAUSE, pause * 2)

    async def _ask(self, submission: Submission) -> PrefectRun:
        client = await self._connection.client()
        with self._connection.quick():
            return await arun_deployment(
                UUID(submission.deployment.id),
                client=client,
                parameters=dict(submission.parameters),
                flow_run_name=submission.name,
                timeout=0,
                tags=list(submission.tags),
                idempotency_key=submission.key,
                work_queue_name=submission.work_queue_name,
                as_subflow=False,
                job_variables=dict(submission.job_variables) or None,
            )

    def _verify(self, run: PrefectRun, submission: Submission) -> None:
        # A key is unique per flow, not per deployment, and blind to parameters: what came back may be another's.
        # Source: prefect server/models/flow_runs.py, 3.8.8.
        ours = submission.deployment
        if str(run.deployment_id) != ours.id or run.idempotency_key not in (None, submission.key):
            raise SubmissionRefusedError(
                f"the key of a child run of {ours.name!r} belongs to the run {run.name!r} of another deployment."
            )
        if (reference := submission.parameters.get("batch")) is not None and run.parameters.get("batch") != reference:
            raise SubmissionRefusedError(f"the key of a child run of {ours.name!r} belongs to a run of another batch.")
