"""`control-job`: tell a job from the Prefect UI how to go on, as the command line's `stop scale pause resume` do.

Works through the job's folder alone: what it says holds also while the job's parent is down. It needs the storage that
the job lies in, and nothing else.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from prefect import State
from prefect.states import Completed, Failed
from pydantic import Field

from orchestrator.engine.context import outermost_run, run_logger
from orchestrator.engine.masking import mask
from orchestrator.engine.refusing import refusing_flow
from orchestrator.errors import ConfigurationError
from orchestrator.flows.prepare import storage_root
from orchestrator.settings import Settings
from orchestrator.store import JobFolder, job_folder_url
from orchestrator.store.controls import ask_to_stop, change, parent_is_alive, standing

Window = Annotated[int, Field(ge=1, le=1000)]
Action = Literal["stop: cancel", "stop: drain", "pause", "resume", "scale", "kill switch"]
FORM = ("job", "action", "max_in_flight", "kill_switch", "reason", "storage")


def _refuse_misfits(unknown: Sequence[str], missing: Sequence[str]) -> State[Any]:
    """The end of a run whose parameters are not those of the form."""
    if unknown:
        return _refused(
            ConfigurationError(f"there is no such field; there are {', '.join(FORM)}", field=unknown[0][:80])
        )
    return _refused(ConfigurationError("is needed", field=missing[0]))


def _refused(error: ConfigurationError) -> State[Any]:
    run_logger().error("Refused: %s", error)
    return Failed(message=str(error), name="Refused")


@refusing_flow(
    _refuse_misfits,
    name="control-job",
    description="Stops, pauses or resumes a job, or changes its window or kill switch, while it runs.",
    # Prefect's own refusal would be a traceback; ours is one line.
    validate_parameters=False,
)
async def control_job_flow(
    job: str,
    action: Action,
    max_in_flight: Window = None,  # type: ignore[assignment]  # `| None` would be a pair of tabs in the form
    kill_switch: str = "",
    reason: str = "",
    storage: str = "",
) -> State[Any]:
    """Tell a job how to go on.

    Args:
        job: The job's id, as its page and `orchestrator status` show it.
        action: What to do. cancel ends child runs in flight, drain lets them finish; pause submits nothing more.
        max_in_flight: For scale: most child runs at once from now on.
        kill_switch: For kill switch: the new expression, or none.
        reason: Why; shown to everybody who looks at the job.
        storage: Folder or URL under which the job's own folder lies; by default from the settings.
    """
    try:
        asked = (job, action, max_in_flight, kill_switch, reason, storage)
        said = await asyncio.to_thread(_carry_out, *asked, _who())
    except ConfigurationError as e:
        return _refused(e)
    run_logger().info("%s", said)
    return Completed(message=said)


def _who() -> str:
    run = outermost_run()
    return f"control-job run {run.name}" if run else "control-job"


def _carry_out(job: Any, action: Any, max_in_flight: Any, kill_switch: Any, reason: Any, storage: Any, who: str) -> str:
    """Do it; gives the line that says what was done.

    Raises:
        ConfigurationError: a field is missing, wrong, or not of this action; or the job cannot be told that.
    """
    texts = {"job": job, "kill_switch": kill_switch, "reason": reason, "storage": storage}
    for name, value in texts.items():
        if value is not None and not isinstance(value, str):
            raise ConfigurationError(f"must be a text, not {value!r:.80}", field=name)
    expression, why = (kill_switch or "").strip(), mask((reason or "").strip(), Settings().masked_env)
    if not (job or "").strip():
        raise ConfigurationError("name the job by its id", field="job")
    _check_action(action, max_in_flight, expression)
    folder = JobFolder(job_folder_url(storage_root((storage or "").strip() or None, Settings()), job.strip()))
    job_id = folder.read_job().job_id
    if action in ("stop: cancel", "stop: drain"):
        mode: Literal["cancel", "drain"] = "drain" if action == "stop: drain" else "cancel"
        force = ask_to_stop(folder, mode, who, why)
        how = "child runs in flight may finish" if force.mode == "drain" else "child runs in flight are cancelled"
        earlier = f" (a stop was in force already: {force.reason}, {force.who})" if force.who != who else ""
        return f"job {job_id}: stopping, {how}{earlier}"
    if action == "resume":
        return _resume(folder, job_id, who, why)
    told = change(
        folder,
        max_in_flight=max_in_flight if action == "scale" else None,
        kill_switch=expression if action == "kill switch" else None,
        paused=True if action == "pause" else None,
        who=who,
        reason=why,
    )
    return f"job {job_id}: {told.said}"


def _check_action(action: Any, max_in_flight: Any, expression: str) -> None:
    known = get_args(Action)
    if action not in known:
        near = difflib.get_close_matches(str(action), known, n=2)
        raise ConfigurationError(f"{action!r:.80} is none of {', '.join(near or known)}", field="action")
    if (max_in_flight is not None) != (action == "scale"):
        word = "is needed" if action == "scale" else "goes with the action `scale`"
        raise ConfigurationError(word, field="max_in_flight")
    if max_in_flight is not None and type(max_in_flight) is not int:
        raise ConfigurationError(f"must be a whole number, not {max_in_flight!r:.80}", field="max_in_flight")
    if bool(expression) != (action == "kill switch"):
        word = "is needed (`none` takes it away)" if action == "kill switch" else "goes with the action `kill switch`"
        raise ConfigurationError(word, field="kill_switch")


def _resume(folder: JobFolder, job_id: str, who: str, reason: str) -> str:
    paused = standing(folder).paused
    told = change(folder, paused=False, who=who, reason=reason)  # refuses a job that is over or being stopped
    if parent_is_alive(folder, Settings().beat_seconds):
        return f"job {job_id}: {told.said}"
    away = "its parent run gives no sign of life: start orchestrate with the source `Resume a job`"
    if not paused:
        raise ConfigurationError(f"job {job_id!r} is not paused; {away}", field="job")
    return f"job {job_id}: {told.said}; {away}"
