"""`orchestrate()`: a job from Python, in a flow of one's own or in a script.

Plain functions, so that a retry of the user's flow finds the same job (a subflow would get a new run id each time).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from orchestrator.core.killswitch import DEFAULT_FAIL_IF, DEFAULT_KILL_SWITCH, Switch
from orchestrator.core.model import Verdict
from orchestrator.core.report import Report
from orchestrator.engine.context import outermost_run, run_logger
from orchestrator.errors import ConfigurationError, JobCancelledError, JobFailedError, KillSwitchTrippedError
from orchestrator.flows.calling import Call, OnView, make_call
from orchestrator.flows.plan import Plan
from orchestrator.flows.prepare import Prepared
from orchestrator.flows.request import Limits
from orchestrator.flows.requests import BATCH_SECONDS, check_limit
from orchestrator.flows.waiting import in_own_loop, run_async, run_sync
from orchestrator.settings import Settings
from orchestrator.store import SourcePolicy

OnFailure = Literal["raise", "return"]


async def orchestrate(
    deployment: str | Mapping[str, str],
    items: Any,
    *,
    batch_size: int = 100,
    max_in_flight: int = 8,
    kill_switch: str | Switch | Limits | Mapping[str, Any] | None = DEFAULT_KILL_SWITCH,
    parameters: Mapping[str, Any] | None = None,
    on_trip: Literal["cancel", "drain"] = "cancel",
    enough_when: str | Switch | None = None,
    fail_if: str | Switch | None = DEFAULT_FAIL_IF,
    pass_items_as: str = "reference",
    key: str | None = None,
    select: str | None = None,
    weight: str | None = None,
    group_by: str | None = None,
    max_bytes: int | None = None,
    max_weight: float | None = None,
    unique_keys: bool = False,
    skip_succeeded_of: str | None = None,
    job_variables: Mapping[str, Any] | None = None,
    tags: list[str] | tuple[str, ...] = (),
    work_queue_name: str | None = None,
    batch_retries: int | None = None,
    isolate_crashing_items: bool = True,
    start_timeout_seconds: float = 600,
    batch_timeout_seconds: float | None = None,
    max_requests_per_minute: int | None = None,
    on_parent_cancelled: Literal["cancel", "drain", "abandon"] = "cancel",
    job_id: str | None = None,
    storage: str | None = None,
    on_progress: OnView | None = None,
    on_failure: OnFailure = "raise",
) -> Report:
    """Fan a collection of items out over a deployment, and account for every item.

    Inside a flow, calling it again (a retry of the flow) resumes the same job: the n-th call in a run is one job.

    Args:
        deployment: `flow-name/deployment-name`; or `group_by` value -> name, with `*` for every other group.
        items: A list, range, iterable or function that yields; or a text: path or URL (format by suffix), `glob:...`,
            `range:a:b`, `python:module:callable`, `job:<id>?outcome=failed`, `results:<id>`.
        batch_size: Most items of a batch, >= 1.
        max_in_flight: Most child runs at once, 1..1000; limits of pool, queue and deployment lower it.
        kill_switch: Expression, switch or limits that stop the job; None for none.
        parameters: Passed to every child run besides its items.
        on_trip: What a stop does to child runs in flight.
        enough_when: Expression that ends the job early as a success.
        fail_if: Expression that makes a finished job a failure; None for never.
        pass_items_as: `reference` (batch flows), `list:NAME`, `one:NAME` or `parameters` (other flows).
        key, select, weight, group_by: Fields of each item: its label, the part handed on, its weight, its group.
        max_bytes, max_weight: Further limits of a batch.
        unique_keys: Refuse a source in which a key comes twice.
        skip_succeeded_of: Job id, or a pattern as `nightly-*`; items whose key succeeded there are left out.
        job_variables, tags, work_queue_name: Of each child run, as Prefect means them.
        batch_retries: New child runs for a batch that the infrastructure lost; None: 2, or 0 unless by reference.
        isolate_crashing_items: From a batch's third attempt on, find the item that kills its run and fail it alone.
        start_timeout_seconds: A child run may stay Pending so long.
        batch_timeout_seconds: A child run may be Running so long; None for no bound.
        max_requests_per_minute: Most requests that this call makes to Prefect's API in a minute, at least 20; None: as
            `ORCHESTRATOR_MAX_REQUESTS_PER_MINUTE` says, else as many as it needs. Child runs make their own.
        on_parent_cancelled: What becomes of child runs when this run is cancelled or dies: `cancel`; or they finish
            their batch and the job ends (`drain`) or can be resumed (`abandon`).
        job_id: Same id and same request again resume the job. Default: from the outermost flow run, else random.
        storage: fsspec URL under which job folders lie; by default `ORCHESTRATOR_STORAGE`, else in `PREFECT_HOME`.
        on_progress: Called about once a second with a snapshot, from another thread.
        on_failure: `raise` an error with the report when the job did not end well, or `return` the report.

    Returns:
        The report: `succeeded + failed + unknown + not_started == total`.

    Raises:
        ConfigurationError and its kin: the request cannot be carried out; nothing was created.
        EngineUnavailableError: Prefect cannot be reached.
        KillSwitchTrippedError, JobFailedError, JobCancelledError: with `.report`, unless `on_failure="return"`.
    """
    request = {k: v for k, v in locals().items() if k not in ("items", "on_progress", "on_failure")}
    check_on_failure(on_failure)
    call = make_call(request, on_progress)
    prepared = await call.prepare(items)
    return _conclude(await run_async(call, prepared), on_failure)


def orchestrate_sync(
    deployment: str | Mapping[str, str],
    items: Any,
    *,
    on_progress: OnView | None = None,
    on_failure: OnFailure = "raise",
    **parameters: Any,
) -> Report:
    """As `orchestrate`, for flows and scripts that are not async; takes the same parameters."""
    check_on_failure(on_failure)
    call = make_call({"deployment": deployment, **parameters}, on_progress)
    prepared = in_own_loop(lambda: call.prepare(items))
    return _conclude(run_sync(call, prepared), on_failure)


def plan_sync(
    deployment: str | Mapping[str, str],
    items: Any,
    *,
    requests_per_minute: int | None = None,
    batch_seconds: float = BATCH_SECONDS,
    **parameters: Any,
) -> Plan:
    """What `orchestrate()` would do with the same parameters; creates nothing.

    Args:
        requests_per_minute: A limit of the server's, which the plan then speaks about.
        batch_seconds: How long a batch is taken to run under that limit.

    Raises:
        ConfigurationError and its kin, EngineUnavailableError: as `orchestrate()` would.
    """
    check_limit(requests_per_minute, batch_seconds)
    call = make_call({"deployment": deployment, **parameters})
    return in_own_loop(lambda: call.plan(items, requests_per_minute, batch_seconds))


def stage_sync(deployment: str | Mapping[str, str], items: Any, **parameters: Any) -> Prepared:
    """Create the job and run nothing of it: whoever resumes it first becomes its parent.

    Raises:
        ConfigurationError and its kin, EngineUnavailableError: as `orchestrate()` would.
    """
    call = make_call({"deployment": deployment, **parameters})
    return in_own_loop(lambda: call.prepare(items))


def resume_sync(
    job_id: str,
    *,
    storage: str | None = None,
    on_progress: OnView | None = None,
    on_failure: OnFailure = "raise",
) -> Report:
    """Take an existing job over, as it was staged, and run it to its end.

    Raises:
        JobNotFoundError: there is none of that id in the storage.
        JobConflictError: it is over and did not end well; its items can be run again in a new job.
    """
    settings = Settings()
    call = Call(None, settings, outermost_run(), run_logger(settings.masked_env), on_progress, SourcePolicy())
    prepared = in_own_loop(lambda: call.take_over(job_id, storage))
    return _conclude(run_sync(call, prepared), on_failure)


async def resume(
    job_id: str, *, storage: str | None = None, on_progress: OnView | None = None, on_failure: OnFailure = "raise"
) -> Report:
    """As `resume_sync`, async."""
    settings = Settings()
    call = Call(None, settings, outermost_run(), run_logger(settings.masked_env), on_progress, SourcePolicy())
    return _conclude(await run_async(call, await call.take_over(job_id, storage)), on_failure)


def check_on_failure(value: str) -> None:
    """Refuse a word that would be noticed only after the job.

    Raises:
        ConfigurationError: it is neither `raise` nor `return`.
    """
    if value not in ("raise", "return"):
        raise ConfigurationError(f"must be 'raise' or 'return', got {value!r}", field="on_failure")


def _conclude(report: Report, on_failure: OnFailure) -> Report:
    if report.ok or on_failure == "return":
        return report
    message = f"job {report.job_id}: {report.headline}"
    if report.verdict is Verdict.TRIPPED:
        raise KillSwitchTrippedError(message, report=report)
    if report.verdict is Verdict.CANCELLED:
        raise JobCancelledError(message, report=report)
    raise JobFailedError(message, report=report)
