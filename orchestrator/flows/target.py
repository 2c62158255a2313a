"""What a request points at: its deployments as they are now, whether it fits them, and how many may run at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from orchestrator.core.model import Batch
from orchestrator.engine.context import ParentRun
from orchestrator.engine.gateway import Capacity, Deployment, Gateway
from orchestrator.engine.parameters import check_parameters
from orchestrator.errors import ConfigurationError, DeploymentNotFoundError, SourceError
from orchestrator.flows.request import JobSpec, find_template, template_reason
from orchestrator.flows.sharing import check_seen
from orchestrator.store import JobFolder, local_path

ITEMS_PARAMETERS = ("batch", "items")


@dataclass(frozen=True)
class Target:
    """What a spec points at, as it is now.

    Args:
        deployments: By group; key None for every group that is not named.
        capacity: The tightest capacity among them.
        window: The effective bound on child runs at once.
        advice: What a person should know before they start, one line each.
    """

    deployments: Mapping[str | None, Deployment]
    capacity: Capacity
    window: int
    advice: tuple[str, ...] = ()


async def find_target(spec: JobSpec, gateway: Gateway, parent: ParentRun | None, root: str) -> Target:
    """Look the deployments up and check that the request fits them.

    Raises:
        DeploymentNotFoundError, ConfigurationError: it does not.
        EngineUnavailableError: Prefect cannot be asked.
    """
    deployments = {group: await gateway.find_deployment(name) for group, name in spec.deployments.items()}
    advice: list[str] = []
    capacities: list[tuple[Deployment, Capacity]] = []
    for deployment in {d.id: d for d in deployments.values()}.values():
        _check_flow(spec, deployment)
        if not spec.pass_items.by_value:
            await asyncio.to_thread(check_seen, root, deployment, "child runs", spec.job_variables)
        capacity = await gateway.capacity(deployment, spec.work_queue_name)
        for field, missing in capacity.missing_limits.items():
            raise ConfigurationError(f"{missing} (its items need it: {deployment.name})", field=field)
        capacities.append((deployment, capacity))
        advice += _advice(deployment, capacity)
    if not spec.pass_items.by_value:
        await _check_parent(gateway, parent, root, [deployment for deployment, _ in capacities])
    window, why = _window(spec, parent, capacities)
    if why:
        advice.append(why)
    tightest = min((c for _, c in capacities), key=lambda c: c.limit if c.limit is not None else 10**9)
    return Target(deployments, tightest, window, tuple(advice))


async def _check_parent(gateway: Gateway, parent: ParentRun | None, root: str, deployments: list[Deployment]) -> None:
    """Refuse a local folder that lies in the parent's own container, where child runs cannot see it."""
    if parent is None or parent.deployment_id is None or await asyncio.to_thread(local_path, root) is None:
        return
    if all(d.pool == parent.pool and d.pool_type == "process" for d in deployments):
        return  # so it is a process like theirs
    try:
        itself = await gateway.find_deployment(parent.deployment_id)
    except DeploymentNotFoundError:
        return  # deleted since it was started
    await asyncio.to_thread(check_seen, root, itself, "the parent", parent.job_variables)


def _check_flow(spec: JobSpec, deployment: Deployment) -> None:
    items, properties = spec.pass_items, deployment.parameter_schema.get("properties") or {}
    if not items.by_value:
        if not deployment.is_batch_flow:
            raise ConfigurationError(
                f"the flow of {deployment.name!r} takes no `batch`: make it with batch_flow(), or pass items as "
                "parameters with pass_items_as=list:NAME",
                field="pass_items_as",
            )
        check_parameters(deployment, spec.parameters, supplied=ITEMS_PARAMETERS)
        return
    if items.name is not None and items.name not in properties:
        raise ConfigurationError(
            f"the flow of {deployment.name!r} has no parameter {items.name!r}; it takes "
            f"{', '.join(map(repr, properties)) or 'none'}",
            field="pass_items_as",
        )
    if items.kind != "parameters":
        check_parameters(deployment, spec.parameters, supplied=[str(items.name)])


def _window(
    spec: JobSpec, parent: ParentRun | None, capacities: list[tuple[Deployment, Capacity]]
) -> tuple[int, str | None]:
    """The effective bound, and why it is below the one asked for."""
    window, why = spec.max_in_flight, None
    for deployment, capacity in capacities:
        for limit, limited_by, own in _limits(spec, parent, deployment, capacity):
            left = limit - own
            if left < 1:
                held = f"this run holds the only place of {limited_by}" if limit else f"{limited_by} lets nothing run"
                raise ConfigurationError(
                    f"{held}, so its child runs could never start: raise the limit to {1 + own} or more, or deploy "
                    "the parent on another work pool",
                    field="deployment",
                )
            if left < window:
                less = ", less the place of this run" if own else ""
                window, why = left, f"at most {left} child runs at once: {limited_by}{less}"
    return window, why


def _limits(
    spec: JobSpec, parent: ParentRun | None, deployment: Deployment, capacity: Capacity
) -> Iterator[tuple[int, str, int]]:
    """What bounds a deployment's runs: each limit, whose it is, and how many of its places the parent takes itself."""
    if capacity.limit is not None:
        yield capacity.limit, capacity.limited_by or "a limit", 0
    if parent is None or parent.pool is None or parent.pool != deployment.pool:
        return
    if (limit := capacity.pool_limit) is not None:
        yield limit, f"work pool {deployment.pool!r} (limit {limit})", 1
    queue = spec.work_queue_name or deployment.queue
    if (limit := capacity.queue_limit) is not None and parent.queue == queue:
        yield limit, f"work queue {queue!r} (limit {limit})", 1


def _advice(deployment: Deployment, capacity: Capacity) -> list[str]:
    said = []
    if capacity.pool_paused:
        said.append(f"work pool {deployment.pool!r} or its queue is paused: nothing starts before it is resumed")
    if capacity.workers_online == 0:
        said.append(
            f"no worker polls work pool {deployment.pool!r}: start one with "
            f"`prefect worker start --pool {deployment.pool}`"
        )
    if deployment.concurrency_limit is not None:
        said.append(
            f"deployment {deployment.name!r} has a concurrency limit of {deployment.concurrency_limit}: after a "
            "restart of the server Prefect may crash healthy runs that hold one of its places; use max_in_flight"
        )
    return said


def check_groups(spec: JobSpec, groups: Iterable[str | None]) -> None:
    """Refuse groups that no deployment is named for.

    Raises:
        ConfigurationError: with the groups.
    """
    named = spec.deployments
    if None in named:
        return
    missing = sorted({str(g) for g in groups if g not in named})
    if missing:
        raise ConfigurationError(
            f"no deployment for group {', '.join(map(repr, missing[:5]))}; name one for it, or one for `*`",
            field="deployment",
        )


def check_items(spec: JobSpec, target: Target, folder: JobFolder, batches: Iterable[Batch], max_bytes: int) -> None:
    """Items that go by value travel through Prefect's API: size and form are checked before any child exists.

    Raises:
        SourceError: an item cannot be passed so.
    """
    items = spec.pass_items
    for batch in batches:
        values = [item.value for item in folder.read_items(batch)]
        where = f"item {batch.start}" if batch.count == 1 else f"batch {batch.index + 1} (items from {batch.start} on)"
        for value in values:
            if items.kind == "parameters" and not isinstance(value, Mapping):
                raise SourceError("each item must be an object of parameters", source=where)
            if (found := find_template(value)) is not None:
                raise SourceError(template_reason(found), source=where)
        parameters = items.parameters(spec.parameters, values)
        if (size := len(json.dumps(parameters))) > max_bytes:
            raise SourceError(
                f"its parameters are {size:,} bytes, above {max_bytes:,}; lower batch_size, or pass items by reference",
                source=where,
            )
        if items.kind == "parameters":
            try:
                check_parameters(target.deployments[batch.group if batch.group in target.deployments else None],
                                 parameters, field="items")  # fmt: skip
            except ConfigurationError as e:
                raise SourceError(str(e).removeprefix("items: "), source=where) from e
