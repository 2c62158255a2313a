"""What a parent needs to know of deployments: which one a name means, and what limits its runs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus, WorkQueueFilter, WorkQueueFilterName
from prefect.client.schemas.objects import WorkPool, WorkQueue
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

from orchestrator.core.model import BatchReference
from orchestrator.engine.connection import Connection
from orchestrator.engine.gateway import Capacity, Deployment
from orchestrator.engine.limits import needed, trouble
from orchestrator.errors import DeploymentNotFoundError

_PAGE = 200
_MOST_PAGES = 10
_NEAR = 3


async def find_deployment(connection: Connection, name: str) -> Deployment:
    """The deployment of that full name or id.

    Raises:
        DeploymentNotFoundError: there is none; carries near matches.
    """
    try:
        found = await connection.call("find the deployment", lambda client: _read(client, name))
    except ObjectNotFound as error:
        raise DeploymentNotFoundError(name, await _near(connection, name)) from error
    flow = await connection.call("read a flow", lambda client: client.read_flow(found.flow_id))
    pool = None
    if found.work_pool_name:
        pool = await _pool(connection, found.work_pool_name)
    schema = found.parameter_openapi_schema or {}
    limit = found.global_concurrency_limit
    return Deployment(
        id=str(found.id),
        name=f"{flow.name}/{found.name}",
        flow_id=str(found.flow_id),
        flow_name=flow.name,
        pool=found.work_pool_name,
        pool_type=pool.type if pool is not None else None,
        queue=found.work_queue_name,
        parameter_schema=schema,
        enforces_schema=found.enforce_parameter_schema,
        concurrency_limit=limit.limit if limit is not None and limit.active else None,
        is_batch_flow=_takes_a_reference(schema),
        volumes=volumes_of(pool, found.job_variables or {}),
    )


def volumes_of(pool: WorkPool | None, job_variables: Mapping[str, Any]) -> tuple[str, ...]:
    """What containers of a pool mount: a deployment's own volumes replace those of the pool's template.

    Source: prefect workers/base.py `BaseJobConfiguration.from_template_and_values`, 3.8.8.
    """
    found = job_variables.get("volumes", template_default(pool, "volumes") if pool is not None else None)
    return tuple(map(str, found)) if isinstance(found, list) else ()


def template_default(pool: WorkPool, variable: str) -> object:
    """What a pool's template gives a job variable that nobody sets; None where it has none of that name."""
    properties = (pool.base_job_template.get("variables") or {}).get("properties") or {}
    return (properties.get(variable) or {}).get("default")


def _takes_a_reference(schema: Mapping[str, Any]) -> bool:
    """A flow of somebody else may well have a parameter named `batch`: what counts is that it takes our reference."""
    named = (schema.get("properties") or {}).get("batch")
    return named is not None and BatchReference.__name__ in (schema.get("definitions") or {})


async def _read(client: PrefectClient, name: str) -> DeploymentResponse:
    try:
        id_ = UUID(name)
    except ValueError:
        pass
    else:
        return await client.read_deployment(id_)
    # The client puts names into a path as they are: what would change the path is no name.
    if name.count("/") != 1 or any(character in name for character in "?#%\\") or "" in name.split("/"):
        raise ObjectNotFound(http_exc=ValueError(f"not a name of a deployment: {name}"))
    return await client.read_deployment_by_name(name)


async def _near(connection: Connection, name: str) -> Sequence[str]:
    """The most similar names among the first 2,000 deployments."""
    names = await deployment_names(connection)
    by_fold = {known.casefold(): known for known in names}
    close = difflib.get_close_matches(name.casefold(), by_fold, n=_NEAR, cutoff=0.5)
    if not close:  # half a name: the flow's or the deployment's alone
        close = [fold for fold in by_fold if name.casefold() in fold.split("/")][:_NEAR]
    return [by_fold[fold] for fold in close]


async def deployment_names(connection: Connection) -> list[str]:
    """Full names of deployments, sorted; of the first 2,000."""
    deployments = await _deployments(connection)
    flow_names: dict[UUID, str] = {}
    for page in range(_MOST_PAGES):
        flows = await connection.call(
            "list flows", lambda client, page=page: client.read_flows(limit=_PAGE, offset=page * _PAGE)  # type: ignore[misc]
        )  # fmt: skip
        flow_names.update((flow.id, flow.name) for flow in flows)
        if len(flows) < _PAGE:
            break
    return sorted(f"{flow_names[d.flow_id]}/{d.name}" for d in deployments if d.flow_id in flow_names)


async def _deployments(connection: Connection) -> list[DeploymentResponse]:
    found: list[DeploymentResponse] = []
    for page in range(_MOST_PAGES):
        some = await connection.call(
            "list deployments",
            lambda client, page=page: client.read_deployments(limit=_PAGE, offset=page * _PAGE),  # type: ignore[misc]
        )
        found += some
        if len(some) < _PAGE:
            break
    return found


async def capacity_of(connection: Connection, deployment: Deployment, work_queue_name: str | None) -> Capacity:
    """The smallest limit on the deployment's runs now, what pauses them, and who takes them."""
    limits: list[tuple[int, str]] = []
    if deployment.concurrency_limit is not None:
        limits.append((deployment.concurrency_limit, f"deployment '{deployment.name}'"))
    pool = await _pool(connection, deployment.pool) if deployment.pool else None
    missing = await _missing_limits(connection, deployment)
    if pool is None:
        return replace(_capacity(limits), missing_limits=missing)
    if pool.concurrency_limit is not None:
        limits.append((pool.concurrency_limit, f"work pool '{pool.name}'"))
    paused = pool.is_paused
    queue = await _queue(connection, pool.name, work_queue_name or deployment.queue)
    if queue is not None:
        paused = paused or queue.is_paused
        if queue.concurrency_limit is not None:
            limits.append((queue.concurrency_limit, f"work queue '{queue.name}'"))
    smallest = _capacity(limits)
    return Capacity(
        limit=smallest.limit,
        limited_by=smallest.limited_by,
        pool_paused=paused,
        workers_online=await workers_online(connection, pool),
        pool_limit=pool.concurrency_limit,
        queue_limit=queue.concurrency_limit if queue is not None else None,
        missing_limits=missing,
    )


async def _missing_limits(connection: Connection, deployment: Deployment) -> dict[str, str]:
    """The limits that its items could not hold, by the option of `batch_flow` that names them."""
    missing: dict[str, str] = {}
    for field, name in needed(deployment.parameter_schema):
        try:
            limit = await connection.call(
                "read the limit", lambda client, name=name: client.read_global_concurrency_limit_by_name(name)  # type: ignore[misc]
            )  # fmt: skip
        except ObjectNotFound:
            limit = None
        if (why := trouble(field, name, limit)) is not None:
            missing.setdefault(field, why)
    return missing


def _capacity(limits: list[tuple[int, str]]) -> Capacity:
    limit, owner = min(limits, default=(None, None))
    return Capacity(limit=limit, limited_by=None if owner is None else f"{owner} (limit {limit})")


async def _pool(connection: Connection, name: str) -> WorkPool | None:
    try:
        return await connection.call("read the work pool", lambda client: client.read_work_pool(name))
    except ObjectNotFound:
        return None


async def _queue(connection: Connection, pool: str, name: str | None) -> WorkQueue | None:
    if name is None:
        return None
    wanted = WorkQueueFilter(name=WorkQueueFilterName(any_=[name]))
    try:
        queues = await connection.call(
            "read the work queue",
            lambda client: client.read_work_queues(work_pool_name=pool, work_queue_filter=wanted, limit=1),
        )
    except ObjectNotFound:
        return None
    return queues[0] if queues else None  # Prefect creates a missing queue with the first run


async def workers_online(connection: Connection, pool: WorkPool) -> int | None:
    """Workers that polled the pool lately; None when pools of its type have none."""
    if pool.is_push_pool or pool.is_managed_pool:
        return None
    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    workers = await connection.call(
        "read the workers",
        lambda client: client.read_workers_for_work_pool(pool.name, worker_filter=online, limit=_PAGE),
    )
    return len(workers)
