"""What a process knows of the Prefect run it is in, without asking the server."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextvars import Token
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect.context import FlowRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger
from prefect.settings import get_current_settings
from prefect.utilities.urls import url_for

from orchestrator.core.model import RunId
from orchestrator.engine.masking import MaskedLogger, Masker

Logger = logging.Logger | logging.LoggerAdapter[Any]


@dataclass(frozen=True, slots=True)
class ParentRun:
    """The flow run that a job is started from.

    Args:
        id, name, flow_name: As Prefect knows it.
        run_count: How many times it has begun to run, this one included (1 at first; more: Prefect retried it).
        pool, queue: Work pool and queue its process was started by; None outside of deployments.
        deployment_id: None outside of deployments.
        url: Its page in the UI; None when no UI is known.
        job_variables: Of this run, which go before those of its deployment.
    """

    id: RunId
    name: str
    flow_name: str
    run_count: int
    pool: str | None
    deployment_id: str | None
    url: str | None
    queue: str | None = None
    job_variables: Mapping[str, Any] = field(default_factory=dict)


def outermost_run() -> ParentRun | None:
    """The outermost flow run of the running code, None outside of flows.

    A subflow gets a new run id each time its parent is retried; the outermost run keeps its id, so it is what a job
    can be named after. Source: engine-facts 9.
    """
    context = _outermost(FlowRunContext.get())
    run = context.flow_run if context is not None else None
    if context is None or run is None:
        return None
    return ParentRun(
        id=RunId(str(run.id)),
        name=run.name,
        flow_name=context.flow.name if context.flow is not None else "",
        run_count=max(1, run.run_count),
        pool=run.work_pool_name,
        deployment_id=str(run.deployment_id) if run.deployment_id else None,
        url=run_url(RunId(str(run.id))),
        queue=run.work_queue_name,
        job_variables=run.job_variables or {},
    )


def prefect_home() -> Path:
    """Prefect's home folder, absolute. Source: `PREFECT_HOME`, settings/models/root.py, 3.8.8."""
    return Path(get_current_settings().home).expanduser().absolute()


def in_flow_run_process() -> RunId | None:
    """The flow run this whole process was started for by a worker, None for a script.

    Source: prefect runtime/flow_run.py `get_id` reads the same variable, 3.8.8.
    """
    id_ = os.environ.get("PREFECT__FLOW_RUN_ID")
    return RunId(id_) if id_ else None


def run_url(run_id: RunId) -> str | None:
    """The page of a run in the UI, None when no UI is known."""
    return url_for("flow-run", obj_id=run_id)


def run_logger(masked_env: Sequence[str] = ()) -> Logger:
    """The run's logger inside a run, ours outside; it masks secrets. Captured once, it works from every thread.

    Args:
        masked_env: Names of environment variables whose values are masked too.
    """
    try:
        found: Logger = get_run_logger()
    except MissingContextError:
        found = get_logger("orchestrator")
    return MaskedLogger(found, Masker(masked_env))


def _outermost(context: FlowRunContext | None) -> FlowRunContext | None:
    # Each context remembers what it replaced; Prefect offers no public way along that chain.
    while context is not None:
        token: Token[Any] | None = context._token
        before = token.old_value if token is not None else Token.MISSING
        if not isinstance(before, FlowRunContext):
            return context
        context = before
    return None
