"""What `doctor` looks at: this machine's packages and settings, the server, the pools, one deployment, the storage."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.cli.jobs import storage_root
from orchestrator.engine.admin import Admin, Pool, Server, fastapi_problem, open_admin
from orchestrator.engine.gateway import Deployment
from orchestrator.engine.masking import SHORTEST, too_short
from orchestrator.errors import ConfigurationError, StorageError, StoreUnavailableError
from orchestrator.flows.plan import SQLITE_IN_FLIGHT
from orchestrator.flows.requests import CHILD_REQUESTS, PARENT_REQUESTS_PER_MINUTE
from orchestrator.flows.sharing import check_seen
from orchestrator.settings import Settings
from orchestrator.store import local_path, open_store, probe

TRIED = "3.8"  # the Prefect series that the tests cover


@dataclass
class Findings:
    """Lines for people, each `ok`, `tight` (it works, but) or `wrong`."""

    lines: list[tuple[str, str]] = field(default_factory=list)

    def ok(self, text: str) -> None:
        self.lines.append(("ok", text))

    def tight(self, text: str) -> None:
        self.lines.append(("tight", text))

    def problem(self, text: str) -> None:
        self.lines.append(("wrong", text))

    @property
    def problems(self) -> list[str]:
        return [text for level, text in self.lines if level == "wrong"]

    def to_json(self) -> list[dict[str, str]]:
        return [{"level": level, "text": text} for level, text in self.lines]


async def examine(found: Findings, deployment: str | None, max_in_flight: int, storage: str | None) -> None:
    """Look at everything that can be looked at; adds to `found` as it goes.

    Raises:
        EngineUnavailableError: Prefect cannot be reached; what needs no server has been looked at by then.
    """
    settings = Settings()
    _packages(found)
    _secrets(found, settings.masked_env)
    root = await _storage(found, storage)
    async with open_admin(settings.masked_env) as admin:
        server = await admin.server()
        _server(found, server, max_in_flight)
        pools = await admin.pools()
        await _parent(found, admin, settings, pools)
        if deployment is None:
            for pool in pools:
                _pool(found, pool)
            if not pools:
                found.problem("there is no work pool: `orchestrator deploy --pool NAME --create-pool` makes one")
            return
        await _deployment(found, admin, await admin.find_deployment(deployment), max_in_flight, root, settings)


def _secrets(found: Findings, names: Sequence[str]) -> None:
    if short := too_short(names):
        found.tight(f"{', '.join(short)} (ORCHESTRATOR_MASKED_ENV): of fewer than {SHORTEST} characters, so not masked")
    if unset := [name for name in names if name not in os.environ]:
        found.tight(f"{', '.join(unset)} (ORCHESTRATOR_MASKED_ENV): not set here, so not masked here")


def _packages(found: Findings) -> None:
    if (problem := fastapi_problem()) is not None:
        found.tight(f"{problem} (matters where a server is started from this environment)")
    if os.environ.get("PREFECT_WORKER_ENABLE_CANCELLATION", "").lower() in ("1", "true", "yes", "on"):
        found.problem(
            "PREFECT_WORKER_ENABLE_CANCELLATION is on here: a process worker with it starts child runs that were "
            "cancelled while Pending; unset it for process workers (their own environment cannot be seen from here)"
        )


async def _storage(found: Findings, storage: str | None) -> str | None:
    try:
        root = storage_root(storage)
        await asyncio.to_thread(lambda: probe(open_store(root)))
        local = await asyncio.to_thread(local_path, root) is not None
    except (ConfigurationError, StoreUnavailableError) as e:
        found.problem(str(e))
        return None
    here = "a folder of this machine: child runs must start on it, as processes or in containers that mount it"
    kind = here if local else "shared storage"
    found.ok(f"job folders can be written to {root}, {kind}")
    return root


def _server(found: Findings, server: Server, max_in_flight: int) -> None:
    if server.cloud:
        found.ok(f"Prefect Cloud at {server.url}")
        found.tight(
            f"Prefect Cloud limits API requests per minute: a child run costs about {CHILD_REQUESTS}, "
            f"a job's watching at most {PARENT_REQUESTS_PER_MINUTE}"
        )
        return
    found.ok(f"Prefect server {server.version} at {server.url}")
    if server.version is not None and not server.version.startswith(TRIED + "."):
        found.tight(f"server {server.version} is untried: this version was tested with Prefect {TRIED}")
    if server.version is not None and server.version.split(".")[:2] != server.client_version.split(".")[:2]:
        found.problem(
            f"Prefect {server.client_version} here and {server.version} on the server: use one version everywhere"
        )
    if server.database == "sqlite":
        if max_in_flight > SQLITE_IN_FLIGHT:
            found.tight(
                f"the server's database is SQLite, which delays with more than {SQLITE_IN_FLIGHT} child runs at once "
                f"({max_in_flight} wanted): use PostgreSQL, or --max-in-flight {SQLITE_IN_FLIGHT}"
            )
        else:
            found.ok(f"its database is SQLite: fine up to about {SQLITE_IN_FLIGHT} child runs at once")
    elif server.database:
        found.ok(f"its database is {server.database}")
    if server.cancelling_timeout_seconds is not None and server.cancelling_timeout_seconds < 60:
        found.tight(
            f"the server calls a run Cancelled after {server.cancelling_timeout_seconds:g} s of Cancelling, even if it "
            "still starts: choose more than the longest start (an image pull)"
        )


async def _parent(found: Findings, admin: Admin, settings: Settings, pools: list[Pool]) -> None:
    name = settings.parent_deployment
    if name not in await admin.deployments():
        found.tight(
            f"the parent {name!r} is not deployed: `orchestrator deploy` adds it (needed for the UI and --detach)"
        )
        return
    parent = await admin.find_deployment(name)
    found.ok(f"the parent {name!r} is deployed on work pool {parent.pool!r}")
    for pool in pools:
        if pool.name == parent.pool and pool.workers_online == 0:
            found.problem(f"no worker polls {pool.name!r}: prefect worker start --pool {pool.name}")


def _pool(found: Findings, pool: Pool) -> None:
    name = f"work pool {pool.name!r} ({pool.type})"
    limit = "" if pool.limit is None else f", limit {pool.limit}"
    if pool.paused:
        found.problem(f"{name} is paused: prefect work-pool resume {pool.name}")
    if pool.workers_online == 0:
        found.problem(f"{name} has no worker online: prefect worker start --pool {pool.name}")
    elif not pool.paused:
        workers = "needs no worker" if pool.workers_online is None else f"{pool.workers_online} online"
        found.ok(f"{name}: {workers}{limit}")


async def _deployment(
    found: Findings, admin: Admin, deployment: Deployment, max_in_flight: int, root: str | None, settings: Settings
) -> None:
    name = f"deployment {deployment.name!r}"
    if deployment.is_batch_flow:
        found.ok(f"{name} is a batch flow")
    else:
        found.tight(f"{name} is no batch flow: pass items by value, --pass-items-as list:NAME")
    if root is not None and deployment.is_batch_flow:
        try:
            await asyncio.to_thread(check_seen, root, deployment, "child runs")
        except StorageError as e:
            found.problem(str(e))
    if deployment.concurrency_limit is not None:
        found.tight(
            f"{name} has a concurrency limit ({deployment.concurrency_limit}): after a server restart Prefect may end "
            "healthy runs that hold a place; remove it and use --max-in-flight"
        )
    if deployment.pool is None:
        found.ok(f"{name} has no work pool: a process that serves it takes its runs")
        return
    capacity = await admin.capacity(deployment)
    pool = await admin.pool(deployment.pool)
    if pool is not None:
        _pool(found, pool)
    if capacity.limit is not None and capacity.limit < max_in_flight:
        found.tight(
            f"{capacity.limited_by} is below --max-in-flight {max_in_flight}: no more than {capacity.limit} run at once"
        )
    if capacity.pool_limit == 1 and await _shares_pool(admin, settings, deployment):
        found.problem(
            f"the parent and {name} share work pool {deployment.pool!r} (limit 1): the parent would hold the only "
            "place; raise the limit or deploy the parent on another pool"
        )


async def _shares_pool(admin: Admin, settings: Settings, deployment: Deployment) -> bool:
    try:
        parent: Any = await admin.find_deployment(settings.parent_deployment)
    except ConfigurationError:
        return False
    return bool(parent.pool == deployment.pool)
