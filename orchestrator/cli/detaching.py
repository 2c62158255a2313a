"""`run --detach`: stage a job here, have the deployed parent carry it out, do not wait."""

from __future__ import annotations

import asyncio
from typing import Any

from orchestrator.cli.jobs import storage_root
from orchestrator.engine.admin import open_admin
from orchestrator.engine.context import run_url
from orchestrator.engine.gateway import Deployment
from orchestrator.errors import (
    ConfigurationError,
    DeploymentNotFoundError,
    EngineError,
    EngineUnavailableError,
)
from orchestrator.flows.call import stage_sync
from orchestrator.flows.prepare import Prepared
from orchestrator.flows.sharing import check_seen
from orchestrator.settings import Settings


def start_detached(request: dict[str, Any]) -> dict[str, Any]:
    """Stage a job and start its parent; facts about what was started.

    The items are read on this machine; the parent's run gets their place only.

    Args:
        request: As `orchestrate()` takes it, `items` and `job_id` included.

    Raises:
        What `orchestrate` raises for a request that cannot be carried out; nothing was created then.
        EngineUnavailableError: the job is staged, but whether its parent was started is not known.
    """
    settings = Settings()
    root = storage_root(request.get("storage"))
    parent = asyncio.run(_find_parent(settings, root))
    prepared = stage_sync(**request)
    facts: dict[str, Any] = {
        "job_id": prepared.job.id,
        "batches": len(prepared.job.batches),
        "items": sum(batch.count for batch in prepared.job.batches),
        "deployment": parent.name,
        "storage": prepared.job.folder.url,
        "parent_run": None,
        "url": None,
    }
    if prepared.old_report is not None:  # the same request, and it is over
        return facts | {"items": prepared.old_report.items.total, "batches": prepared.old_report.batches.total}
    run = asyncio.run(_start_parent(settings, parent, prepared, root, request["deployment"]))
    return facts | {"parent_run": run, "url": run_url(run)}


async def _find_parent(settings: Settings, root: str) -> Deployment:
    async with open_admin(settings.masked_env) as admin:
        try:
            parent = await admin.find_deployment(settings.parent_deployment)
        except DeploymentNotFoundError as e:
            raise ConfigurationError(
                f"the parent {settings.parent_deployment!r} is not deployed (--detach needs it): "
                "`orchestrator deploy` adds it"
            ) from e
    await asyncio.to_thread(check_seen, root, parent, "the parent")
    return parent


async def _start_parent(
    settings: Settings, parent: Deployment, prepared: Prepared, root: str, deployment: str | dict[str, str]
) -> Any:
    job_id = prepared.job.id
    parameters = {"deployment": deployment, "items": {"resume": job_id}, "advanced": {"storage": root}}
    async with open_admin(settings.masked_env) as admin:
        try:
            return (await admin.trigger(parent, parameters, name=f"job {job_id}")).id
        except EngineUnavailableError as e:
            raise EngineUnavailableError(
                f"{e} The job is staged: `orchestrator resume {job_id}` carries it out."
            ) from e
        except EngineError:
            if not prepared.resumed:
                await asyncio.to_thread(prepared.job.folder.delete)
            raise
