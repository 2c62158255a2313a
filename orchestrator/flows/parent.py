"""`orchestrate/default`: the parent as a deployment, with a form that the Prefect UI can draw.

Top-level parameters get their description from the docstring's `Args:`, nested fields from their own; a union of models
is drawn as tabs. Source: seen in the UI of Prefect 3.8.8.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal
from uuid import UUID

from prefect import Flow, State, flow
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Completed, Failed
from pydantic import BaseModel, ConfigDict, Field

from orchestrator.core.killswitch import DEFAULT_KILL_SWITCH
from orchestrator.core.model import StopCause, StopMode, StopRecord, Verdict
from orchestrator.core.report import Report
from orchestrator.engine.context import outermost_run, run_logger
from orchestrator.errors import ConfigurationError, JobConflictError, OrchestratorError
from orchestrator.flows.call import Call, make_call, run_async
from orchestrator.flows.prepare import storage_root
from orchestrator.flows.request import Advanced, Limits
from orchestrator.settings import Settings
from orchestrator.store import JobFolder, SourcePolicy, job_folder_url


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid")


class File(_Source):
    """A file: text, CSV, JSON, JSON Lines or Parquet."""

    model_config = ConfigDict(extra="forbid", title="File")
    kind: Literal["file"] = "file"
    path: str = Field(description="Path or fsspec URL; the suffix tells the format.")


class Glob(_Source):
    """The paths of files that match a pattern."""

    model_config = ConfigDict(extra="forbid", title="Paths by pattern")
    kind: Literal["glob"] = "glob"
    pattern: str = Field(description="e.g. `/data/videos/*.mp4` or `s3://bucket/images/**`.")


class Inline(_Source):
    """A short list, written here."""

    model_config = ConfigDict(extra="forbid", title="List")
    kind: Literal["inline"] = "inline"
    items: list[Any] = Field(description="JSON values; for small lists only.")


class Range(_Source):
    """Whole numbers."""

    model_config = ConfigDict(extra="forbid", title="Range")
    kind: Literal["range"] = "range"
    start: int = Field(default=0, description="First number.")
    stop: int = Field(description="One above the last number.")


class Python(_Source):
    """What a Python function yields."""

    model_config = ConfigDict(extra="forbid", title="Python function")
    kind: Literal["python"] = "python"
    callable: str = Field(description="`module:callable`; its module must be allowed by ORCHESTRATOR_PYTHON_SOURCES.")


class JobItems(_Source):
    """Items of an earlier job."""

    model_config = ConfigDict(extra="forbid", title="Items of a job")
    kind: Literal["job"] = "job"
    job: str = Field(description="Id of the earlier job.")
    outcome: list[Literal["failed", "unknown", "not_started", "succeeded"]] = Field(
        default=["failed", "unknown", "not_started"], description="Which of its items."
    )


class Results(_Source):
    """Results of an earlier job's items."""

    model_config = ConfigDict(extra="forbid", title="Results of a job")
    kind: Literal["results"] = "results"
    job: str = Field(description="Id of the earlier job.")


class Staged(_Source):
    """The items of the job named in `advanced.job_id`, as they were staged: resumes it."""

    model_config = ConfigDict(extra="forbid", title="Resume")
    kind: Literal["staged"] = "staged"


Items = Annotated[File | Glob | Inline | Range | Python | JobItems | Results | Staged, Field(discriminator="kind")]


def _settle_after_cancel(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Finish what a cancelled parent had no time for: Prefect kills it about 29 s after the request.

    Runs in a process of its own, after the parent's end; it stops the job again (which changes nothing) and reads how
    its child runs ended.
    """
    advanced = flow_run.parameters.get("advanced") or {}
    job_id = advanced.get("job_id") or f"{flow_run.id}-1"
    if advanced.get("on_parent_cancelled") == "abandon":
        return
    try:
        root = storage_root(advanced.get("storage"), Settings())
        asyncio.run(_settle(job_id, root, flow_run.id, flow_run.name))
    except OrchestratorError as e:
        run_logger().warning("The job could not be settled after the cancellation: %s", e)


async def _settle(job_id: str, root: str, run_id: UUID, run_name: str) -> None:
    folder = JobFolder(job_folder_url(root, job_id))
    if await asyncio.to_thread(folder.read_report) is not None:
        return
    await asyncio.to_thread(folder.read_job)  # there is a job at all
    reason = StopRecord(
        StopMode.CANCEL, StopCause.PARENT_CANCELLED, f"{run_name} was cancelled", f"parent run {run_name}"
    )
    await asyncio.to_thread(folder.request_stop, reason)
    call = Call(None, Settings(), None, run_logger(), None, SourcePolicy())
    await run_async(call, await call.take_over(job_id, root))


@flow(
    name="orchestrate",
    description="Fans a collection of items out over a batch deployment and accounts for every item.",
    validate_parameters=True,
    on_cancellation=[_settle_after_cancel],
)
async def orchestrate_flow(
    deployment: str | dict[str, str],
    items: Items,
    batch_size: int = 100,
    max_in_flight: int = 8,
    kill_switch: str | Limits | None = str(DEFAULT_KILL_SWITCH),
    parameters: dict[str, Any] = {},  # noqa: B006 - Prefect copies it; None would be a tab in the form
    advanced: Advanced = Advanced(),  # noqa: B008 - frozen into the form's defaults
) -> State[Any]:
    """Fan a collection of items out over a batch deployment.

    Args:
        deployment: The batch deployment, as flow-name/deployment-name.
        items: Where the items come from.
        batch_size: Most items that one child run works on.
        max_in_flight: Most child runs at once.
        kill_switch: Stops the job when it comes true, e.g. `failed >= 10 or failed_rate > 0.05 and settled >= 200`.
        parameters: Passed to every child run besides its items.
        advanced: Everything that most jobs leave as it is.
    """
    settings = Settings()
    policy = SourcePolicy(python_modules=settings.python_sources, allow_http=settings.allow_http_sources)
    request = {
        "deployment": deployment,
        "batch_size": batch_size,
        "max_in_flight": max_in_flight,
        "kill_switch": kill_switch,
        "parameters": parameters,
        **advanced.model_dump(),
    }
    try:
        if isinstance(items, Staged):
            if advanced.job_id is None:
                raise ConfigurationError("is needed to resume a job", field="advanced.job_id")
            call = Call(None, settings, outermost_run(), run_logger(), None, policy)
            prepared = await call.take_over(advanced.job_id, advanced.storage)
        else:
            call = make_call(request, policy=policy)
            prepared = await call.prepare(items.model_dump())
        report = await run_async(call, prepared)
    except (ConfigurationError, JobConflictError) as e:
        # One line on the run's page says what to mend; a traceback would bury it.
        return Failed(message=str(e), name="Refused")
    return final_state(report)


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
