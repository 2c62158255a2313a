"""`orchestrate/default`: the parent as a deployment, with a form that the Prefect UI can draw (see `form`).

Top-level parameters get their description from the docstring's `Args:`, nested fields from their own.
Source: seen in both UIs of Prefect 3.8.8.
"""

from __future__ import annotations

import asyncio
import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from prefect import Flow, State
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field, ValidationError

from orchestrator.core.killswitch import DEFAULT_KILL_SWITCH
from orchestrator.core.model import RunId, StopCause, StopMode, StopRecord, Verdict
from orchestrator.core.report import Report
from orchestrator.engine.context import outermost_run, run_logger, run_url
from orchestrator.engine.masking import mask
from orchestrator.engine.refusing import refusing_flow
from orchestrator.errors import ConfigurationError, JobNotFoundError, JobTakenOverError, OrchestratorError
from orchestrator.flows.calling import Call, make_call
from orchestrator.flows.form import (
    AdvancedField,
    DeploymentField,
    ItemsField,
    KillSwitchField,
    read_advanced,
    read_items,
)
from orchestrator.flows.prepare import storage_root
from orchestrator.flows.request import Advanced, make_spec
from orchestrator.flows.waiting import run_async
from orchestrator.settings import Settings, settings_error
from orchestrator.store import JobFolder, SourcePolicy, job_folder_url

HOOK_SECONDS = 60.0
"""What a hook gives children that may finish their batch; then it leaves them to `cleanup`, which reports."""


def settle_after_cancellation(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Finish what a cancelled parent had no time for: Prefect kills it about 29 s after the request.

    Runs in a process of its own, after the parent's end; it stops the job again (which changes nothing) and reads how
    its child runs ended.
    """
    _finish(flow_run, cancelled=True)


def settle_after_crash(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Finish what a parent began to stop before it died. A job that was not being stopped is left to be resumed."""
    _finish(flow_run, cancelled=False)


def _finish(run: FlowRun, *, cancelled: bool) -> None:
    items, advanced = run.parameters.get("items"), run.parameters.get("advanced") or {}
    resumed = items.get("resume") if isinstance(items, Mapping) else None
    job_id = resumed or advanced.get("job_id") or f"{run.id}-1"
    try:
        root = storage_root(advanced.get("storage"), Settings())
        asyncio.run(_settle(job_id, root, run, cancelled))
    except JobNotFoundError:
        pass  # it ended before there was a job
    except OrchestratorError as e:
        run_logger().warning("The job could not be settled: %s", e)


async def _settle(job_id: str, root: str, run: FlowRun, cancelled: bool) -> None:
    settings = Settings()
    folder = await asyncio.to_thread(JobFolder, job_folder_url(root, job_id))
    if await asyncio.to_thread(folder.read_report) is not None:
        return
    record = await asyncio.to_thread(folder.read_job)
    if not await asyncio.to_thread(_is_parent, folder, str(run.id)):
        return  # another run has the job: it is none of ours
    spec = make_spec(**{**record.spec.get("job", {}), "job_id": job_id, "storage": root})
    if spec.on_parent_cancelled == "abandon":
        return
    if cancelled:
        mode = StopMode.DRAIN if spec.on_parent_cancelled == "drain" else StopMode.CANCEL
        reason = StopRecord(mode, StopCause.PARENT_CANCELLED, f"{run.name} was cancelled", f"parent run {run.name}")
        await asyncio.to_thread(folder.request_stop, reason)
    stop = await asyncio.to_thread(folder.read_stop)
    if stop is None:
        return
    call = Call(None, settings, None, run_logger(settings.masked_env), None, SourcePolicy())
    prepared = await call.take_over(job_id, root)
    job = replace(prepared.job, page_run=RunId(str(run.id)), url=run_url(RunId(str(run.id))))
    try:
        limit = HOOK_SECONDS if stop.mode is StopMode.DRAIN else None
        async with asyncio.timeout(limit):
            await run_async(call, replace(prepared, job=job))
    except TimeoutError:
        call.log.warning("Child runs of job %s are still at work; `orchestrator cleanup` reports on them.", job_id)


def _is_parent(folder: JobFolder, run_id: str) -> bool:
    """Whether that run is the newest parent of the job."""
    who = folder.read_parent(folder.newest_epoch())
    # Of an earlier version, or dead before it said who it is: the id of a job that has no other names the run.
    return str(who["run_id"]) == run_id if who.get("run_id") else folder.read_job().job_id.startswith(run_id)


def _refuse_misfits(unknown: Sequence[str], missing: Sequence[str]) -> State[Any]:
    """The end of a run whose parameters are not those of the form."""
    if unknown:
        name = unknown[0]
        near = difflib.get_close_matches(name, (*FORM, *Advanced.model_fields), n=1)
        if name in Advanced.model_fields:
            hint = f"it belongs into `advanced`: {{'advanced': {{{name!r}: ...}}}}"
        elif near:
            hint = f"did you mean {near[0] if near[0] in FORM else 'advanced.' + near[0]!r}?"
        else:
            hint = f"there are {', '.join(FORM)}"
        error = ConfigurationError(
            f"there is no such parameter; {hint}", field=name if name.isidentifier() else repr(name)[:80]
        )
    else:
        error = ConfigurationError("is missing", field=missing[0])
    return _refused(error, ())


def _refused(error: ConfigurationError, masked_env: Sequence[str]) -> State[Any]:
    """One line on the run's page says what to mend; a traceback would bury it."""
    run_logger(masked_env).error("Refused: %s", error)
    return Failed(message=mask(str(error), masked_env), name="Refused")


@refusing_flow(
    _refuse_misfits,
    name="orchestrate",
    description="Fans a collection of items out over a batch deployment and accounts for every item.",
    # Prefect's own refusal would be a traceback; ours is one line (see `form`).
    validate_parameters=False,
    on_cancellation=[settle_after_cancellation],
    on_crashed=[settle_after_crash],
)
async def orchestrate_flow(
    deployment: DeploymentField,
    items: ItemsField,
    batch_size: Annotated[int, Field(ge=1)] = 100,
    max_in_flight: Annotated[int, Field(ge=1, le=1000)] = 8,
    kill_switch: KillSwitchField = str(DEFAULT_KILL_SWITCH),
    parameters: dict[str, Any] = {},  # noqa: B006 - Prefect copies it; None would be a tab in the form
    advanced: AdvancedField = None,
) -> State[Any]:
    """Fan a collection of items out over a batch deployment.

    Args:
        deployment: The batch deployment that works on the items, as flow-name/deployment-name.
        items: Where the items come from.
        batch_size: Most items that one child run works on.
        max_in_flight: Most child runs at once.
        kill_switch: Stops the job as soon as this is true, for example: failed >= 10 or (failed_rate > 0.05 and settled >= 200)
        parameters: Passed to every child run besides its items.
        advanced: Everything that most jobs leave as it is.
    """  # noqa: E501 - Prefect's form breaks a description where its line breaks
    try:
        settings = Settings()
    except ValidationError as e:
        return _refused(settings_error(e), ())
    policy = SourcePolicy(
        python_modules=settings.python_sources, allow_http=settings.allow_http_sources, allow_stdin=False
    )
    try:
        asked, more = read_items(items), read_advanced(advanced)
        if asked.resume is not None:
            call = Call(None, settings, outermost_run(), run_logger(settings.masked_env), None, policy)
            prepared = await call.take_over(asked.resume, more["storage"])
        else:
            request = {
                "deployment": deployment,
                "batch_size": batch_size,
                "max_in_flight": max_in_flight,
                "kill_switch": kill_switch,
                "parameters": parameters,
                **more,
            }
            call = make_call(request, policy=policy)
            prepared = await call.prepare(asked.items)
        report = await run_async(call, prepared)
    except JobTakenOverError as e:
        return Failed(message=mask(str(e), settings.masked_env), name="TakenOver")  # the log has said so
    except ConfigurationError as e:
        return _refused(e, settings.masked_env)
    return final_state(report)


FORM = tuple(inspect.signature(orchestrate_flow).parameters)


def final_state(report: Report) -> State[Any]:
    """The parent's final state for a report."""
    message = report.headline
    if report.failed_by_rule or report.verdict is Verdict.FAILED:
        return Failed(message=message)
    if report.verdict is Verdict.TRIPPED:
        return Failed(message=message, name="Tripped")
    if report.verdict is Verdict.CANCELLED:
        return Cancelled(message=message)
    if report.verdict is Verdict.ENOUGH:
        return Completed(message=message, name="Enough")
    return Completed(message=message)
