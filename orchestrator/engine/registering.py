"""The door of `deploy`: register a flow of an installed package as a deployment, on whatever pool there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import VersionInfo
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Cron, Schedule
from prefect.types.entrypoint import EntrypointType

from orchestrator.engine.masking import Masker
from orchestrator.engine.translate import translate


async def register(
    flow: Flow[..., Any],
    name: str,
    *,
    pool: str,
    version: str,
    image: str | None = None,
    job_variables: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
    schedules: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Create the deployment `<flow>/<name>`, or bring the existing one up to date; its id.

    A worker imports the flow by its module: the package must be installed where the pool's runs start, and no code
    has to be fetched. Source: prefect flows.py `load_flow_from_flow_run` (module path entrypoints), 3.8.8.

    Args:
        flow: Importable under `<its module>.<its function's name>`.
        image: For container pools: the image that runs it, used as it is.
        schedules: As a `prefect.yaml` says them (`cron`, `active`, `slug`, `parameters`); those of a deployment that
            exists are left as people set them.

    Raises:
        EngineError: Prefect cannot be reached, or refused.
    """
    masker = Masker(())
    try:
        new = bool(schedules) and not await _exists(f"{flow.name}/{name}")
        deployment = await flow.ato_deployment(
            name=name,
            work_pool_name=pool,
            job_variables=dict(job_variables or {}),
            tags=list(tags),
            version=version,
            entrypoint_type=EntrypointType.MODULE_PATH,
            schedules=[_schedule(schedule) for schedule in schedules] if new else None,
        )
        # Given, so that Prefect does not look for a git repository around the current folder.
        info = VersionInfo(type="prefect:simple", version=version)
        return str(await deployment.aapply(image=image, version_info=info))
    except Exception as error:
        raise translate(error, f"deploy '{flow.name}/{name}'", masker) from error


async def _exists(name: str) -> bool:
    async with get_client() as client:
        try:
            await client.read_deployment_by_name(name)
        except ObjectNotFound:
            return False
    return True


def _schedule(data: Mapping[str, Any]) -> Schedule:
    return Cron(
        data["cron"],
        active=bool(data.get("active", True)),
        slug=data.get("slug"),
        parameters=dict(data.get("parameters") or {}),
    )
