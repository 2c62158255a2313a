"""Commands that act on a job that exists: `retry scale pause`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from orchestrator.cli.jobs import open_job, standing_json, storage_root, who
from orchestrator.cli.options import ITEMS, JOB, STOP, JobArgument, JobId, Json, Reason, Storage, flag
from orchestrator.cli.running import deployment_of, watched
from orchestrator.cli.terminal import give, give_json, masked
from orchestrator.core.model import ItemOutcome
from orchestrator.core.report import Report
from orchestrator.errors import ConfigurationError
from orchestrator.store import JobFolder
from orchestrator.store.controls import change
from orchestrator.store.retries import check_not_taken, link

Only = Literal["failed", "unknown", "not-started", "all"]
_LABELS = ("key", "select", "unique_keys", "skip_succeeded_of")


def retry(
    job: JobArgument,
    /,
    *,
    only: Annotated[
        Only, flag("--only", "Which of its items. Default: all that did not succeed.", group=ITEMS)
    ] = "all",
    deployment: Annotated[
        str | None,
        flag("--deployment", "Another deployment than the job had.", group=JOB, env="ORCHESTRATOR_RETRY_DEPLOYMENT"),
    ] = None,
    batch_size: Annotated[
        int | None,
        flag("--batch-size", "Other than the job had.", group=ITEMS, env="ORCHESTRATOR_RETRY_BATCH_SIZE"),
    ] = None,
    again: Annotated[bool, flag("--again", "Also items that another job was given already.", group=ITEMS)] = False,
    job_id: JobId = None,
    storage: Storage = None,
    json: Json = False,
) -> int:
    """Run what a job left, alone: a new job over its failed, unknown and not started items, otherwise as before."""
    from orchestrator.flows.call import orchestrate_sync
    from orchestrator.flows.prepare import new_job_id

    folder = open_job(job, storage)
    link(folder)  # of a retry that is retried: it may have been made by a parent that died before it was linked
    request = retry_request(folder, job, only, deployment, batch_size, again)
    if request is None:
        said = f"nothing to retry: job {job} left no such items"
        give_json({"job_id": None, "reason": "nothing is left"}) if json else give(said)
        return 0
    request.update(job_id=job_id or new_job_id(), storage=storage_root(storage))
    return watched(
        request["job_id"],
        storage,
        lambda progress: orchestrate_sync(**request, on_progress=progress, on_failure="return"),
        json,
    )


def retry_request(
    folder: JobFolder, job: str, only: Only, deployment: str | None, batch_size: int | None, again: bool = False
) -> dict[str, Any] | None:
    """The parameters of the new job; None when the old one left no such items.

    Raises:
        ConfigurationError: the job is not over, its items were given to another job already, or it was grouped by a
            field that they do not have any more.
    """
    data = folder.read_report()
    if data is None:
        raise ConfigurationError(
            f"job {job!r} is not over: `orchestrator stop {job}` ends it, `orchestrator resume {job}` goes on with it"
        )
    items = Report.from_json(data).items
    wanted = ("failed", "unknown", "not_started") if only == "all" else (only.replace("-", "_"),)
    if not sum(getattr(items, name) for name in wanted):
        return None
    if not again:
        check_not_taken(folder, [ItemOutcome(name) for name in wanted])
    before = dict(folder.read_job().spec.get("job") or {})
    # Items keep their keys, and are what `select` made of them: what was done to them once is not done again.
    request: dict[str, Any] = {k: v for k, v in before.items() if k not in _LABELS}
    if before.get("select") and (before.get("group_by") or before.get("weight")):
        if not isinstance(before.get("deployment"), str) and deployment is None:
            raise ConfigurationError("the items have lost the field they were grouped by", field="deployment")
        request.update(group_by=None, weight=None, max_weight=None)
    if deployment is not None:
        request["deployment"] = deployment_of(deployment)
    if batch_size is not None:
        request["batch_size"] = batch_size
    once_more = "&again=true" if again else ""
    return {**request, "items": f"job:{job}?outcome={','.join(wanted)}{once_more}"}


def scale(
    job: JobArgument,
    /,
    *,
    max_in_flight: Annotated[
        int | None,
        flag("--max-in-flight", "Most child runs at once from now on, 1 to 1000.", group=JOB,
             env="ORCHESTRATOR_SCALE_MAX_IN_FLIGHT"),
    ] = None,
    kill_switch: Annotated[
        str | None,
        flag("--kill-switch", "Another expression from now on, asked at once; `none` for none.", group=STOP,
             env="ORCHESTRATOR_SCALE_KILL_SWITCH"),
    ] = None,
    reason: Reason = "",
    storage: Storage = None,
    json: Json = False,
) -> int:  # fmt: skip
    """Change how many child runs a job may have at once, or its kill switch; child runs in flight are left alone."""
    return _change(job, storage, json, max_in_flight=max_in_flight, kill_switch=kill_switch, reason=masked(reason))


def pause(job: JobArgument, /, *, reason: Reason = "", storage: Storage = None, json: Json = False) -> int:
    """Submit nothing more until `resume`; child runs in flight finish their batch."""
    return _change(job, storage, json, f"; `orchestrator resume {job}` goes on", paused=True, reason=masked(reason))


def _change(job: str, storage: str | None, json: bool, hint: str = "", **what: Any) -> int:
    """Leave a wish in the job's folder, where it holds also while the parent is away."""
    told = change(open_job(job, storage), who=who(), **what)
    if json:
        give_json({"job_id": job, "control": told.number, "said": told.said, **standing_json(told.standing)})
    else:
        give(f"job {job}: {told.said}{hint if told.number is not None else ''}")
    return 0
