"""The door of `doctor`, `plan`, `deploy` and `up`: facts about a Prefect installation, and the little they set up."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import WorkPool
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_CLOUD_API_URL, PREFECT_HOME, get_current_settings

from orchestrator.core.model import RunId
from orchestrator.engine.connection import Connection
from orchestrator.engine.deployments import (
    capacity_of,
    deployment_names,
    find_deployment,
    template_default,
    volumes_of,
    workers_online,
)
from orchestrator.engine.gateway import Capacity, Deployment, Run
from orchestrator.engine.masking import Masker
from orchestrator.engine.parent import run_of
from orchestrator.engine.translate import api_address, translate
from orchestrator.errors import ConfigurationError

_PAGE = 200
# Prefect 3.8's server cannot start on FastAPI from here on: its bulk routes use Body(min_items=).
_FASTAPI_TOO_NEW = (0, 155)
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_RECENT_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Server:
    """A Prefect server, as far as it says.

    Args:
        url, ui_url: Where it is, masked; the UI's address is None when unknown.
        version, client_version: Of Prefect there and here; the server's is None for Prefect Cloud.
        database: "sqlite", "postgresql", or None when it cannot be told.
        cloud: It is Prefect Cloud.
        cancelling_timeout_seconds: After which it makes Cancelling into Cancelled by itself.
        lease_storage: Where it keeps leases of concurrency limits (in memory they are lost with a restart).
    """

    url: str
    ui_url: str | None
    version: str | None
    client_version: str
    database: str | None
    cloud: bool
    cancelling_timeout_seconds: float | None = None
    lease_storage: str | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """A work pool.

    Args:
        workers_online: None when pools of its type have none.
        image, volumes: What its template says of containers, where it starts any.
    """

    name: str
    type: str
    paused: bool
    limit: int | None
    workers_online: int | None
    image: str | None = None
    volumes: Sequence[str] = ()


class Admin:
    """Facts and set-up over one connection; every method raises `EngineUnavailableError` when the server is away."""

    def __init__(self, masked_env: Sequence[str] = ()) -> None:
        self._connection = Connection(Masker(masked_env))

    async def server(self) -> Server:
        """Who answers."""
        url = api_address(self._connection.masker)
        cloud = str(PREFECT_API_URL.value() or "").startswith(PREFECT_CLOUD_API_URL.value())
        client_version = importlib.metadata.version("prefect")
        settings = get_current_settings()
        if cloud:
            await self._connection.call("reach the server", lambda client: client.read_work_pools(limit=1))
            return Server(url, settings.ui_url, None, client_version, "postgresql", cloud)
        version = await self._connection.call("ask for the server's version", lambda client: client.api_version())
        theirs = await self._settings()
        server = _at(theirs, "server")
        timeout = _at(server, "services", "cancellation_cleanup", "cancelling_timeout_seconds")
        lease_storage = _at(server, "concurrency", "lease_storage")
        return Server(
            url=url,
            ui_url=settings.ui_url,
            version=version,
            client_version=client_version,
            database=_database(theirs),
            cloud=cloud,
            cancelling_timeout_seconds=float(timeout) if isinstance(timeout, (int, float)) else None,
            lease_storage=lease_storage if isinstance(lease_storage, str) else None,
        )

    async def _settings(self) -> Mapping[str, Any]:
        """The server's own settings, secrets masked by it; {} when it does not tell."""

        async def read(client: PrefectClient) -> Any:
            response = await client.request("GET", "/admin/settings")
            return response.json()

        try:
            answer = await self._connection.call("read the server's settings", read)
        except Exception:  # noqa: BLE001 - a nicety: a server may refuse to tell
            return {}
        return answer if isinstance(answer, dict) else {}

    async def pools(self) -> list[Pool]:
        """All work pools (the first 200), with their workers."""
        pools = await self._connection.call("list work pools", lambda client: client.read_work_pools(limit=_PAGE))
        return [await self._pool(pool) for pool in pools]

    async def pool(self, name: str) -> Pool | None:
        """The work pool of that name, None when there is none."""
        try:
            pool = await self._connection.call("read the work pool", lambda client: client.read_work_pool(name))
        except ObjectNotFound:
            return None
        return await self._pool(pool)

    async def _pool(self, pool: WorkPool) -> Pool:
        online = await workers_online(self._connection, pool)
        image = template_default(pool, "image")
        return Pool(
            pool.name, pool.type, pool.is_paused, pool.concurrency_limit, online,
            image=image if isinstance(image, str) else None, volumes=volumes_of(pool, {}),
        )  # fmt: skip

    async def ensure_pool(self, name: str, type_: str = "process", template: Mapping[str, Any] | None = None) -> bool:
        """Create the work pool unless it is there; whether it was created.

        Args:
            template: Its base job template; None: Prefect's own for that type.

        Raises:
            ConfigurationError: there is one of that name and another type.
        """
        if (known := await self.pool(name)) is not None:
            if known.type != type_:
                raise ConfigurationError(f"the work pool {name!r} is of type {known.type!r}, not {type_!r}; "
                                         "choose another name", field="pool")  # fmt: skip
            return False

        new = WorkPoolCreate(name=name, type=type_)
        if template is not None:
            new.base_job_template = dict(template)
        try:
            await self._connection.call("create the work pool", lambda client: client.create_work_pool(new))
        except Exception as error:
            if isinstance(error.__cause__, ObjectAlreadyExists):  # somebody was quicker
                return False
            raise
        return True

    async def deployments(self) -> list[str]:
        """Full names of all deployments (the first 2,000), sorted."""
        return await deployment_names(self._connection)

    async def find_deployment(self, name: str) -> Deployment:
        """See `Gateway.find_deployment`."""
        return await find_deployment(self._connection, name)

    async def capacity(self, deployment: Deployment, work_queue_name: str | None = None) -> Capacity:
        """See `Gateway.capacity`."""
        return await capacity_of(self._connection, deployment, work_queue_name)

    async def trigger(
        self,
        deployment: Deployment,
        parameters: Mapping[str, Any],
        *,
        name: str | None = None,
        tags: Sequence[str] = (),
        idempotency_key: str | None = None,
    ) -> Run:
        """Create a run of a deployment and return at once (for `run --detach`).

        Raises:
            EngineError: Prefect refused it; the text says why.
        """
        client = await self._connection.client()
        try:
            run = await arun_deployment(
                UUID(deployment.id),
                client=client,
                parameters=dict(parameters),
                flow_run_name=name,
                timeout=0,
                tags=list(tags),
                idempotency_key=idempotency_key,
                as_subflow=False,
            )
        except Exception as error:
            raise translate(error, f"start {deployment.name!r}", self._connection.masker) from error
        return run_of(run, self._connection.masker)

    async def read_run(self, run_id: RunId) -> Run | None:
        """The record of any flow run, None when there is none of that id."""
        try:
            id_ = UUID(run_id)
        except ValueError:
            return None
        try:
            run = await self._connection.call("read the run", lambda client: client.read_flow_run(id_))
        except ObjectNotFound:
            return None
        return run_of(run, self._connection.masker)

    async def close(self) -> None:
        await self._connection.close()


@asynccontextmanager
async def open_admin(masked_env: Sequence[str] = ()) -> AsyncIterator[Admin]:
    """An `Admin` that is closed at the end of the block; connects at the first question."""
    admin = Admin(masked_env)
    try:
        yield admin
    finally:
        await admin.close()


def fastapi_problem() -> str | None:
    """What is wrong with the FastAPI installed here, None when nothing is."""
    try:
        version = importlib.metadata.version("fastapi")
    except importlib.metadata.PackageNotFoundError:
        return None
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if len(parts) == 2 and parts >= _FASTAPI_TOO_NEW:
        return f"FastAPI {version} is too new for Prefect 3.8's server, which cannot start: pip install 'fastapi<0.151'"
    return None


def _database(settings: Mapping[str, Any]) -> str | None:
    """The kind of database, if it can be told: the server masks its URL, which is all that most are configured by."""
    driver = _at(settings, "server", "database", "driver")
    if isinstance(driver, str):
        return driver.partition("+")[0]
    if urlsplit(str(PREFECT_API_URL.value() or "")).hostname not in _LOOPBACK:
        return None
    # A server on this machine: a SQLite file in its home that was written to lately is its database.
    home = Path(str(_at(settings, "home") or PREFECT_HOME.value()))
    for name in ("prefect.db-wal", "prefect.db"):
        try:
            if time.time() - (home / name).stat().st_mtime < _RECENT_SECONDS:
                return "sqlite"
        except OSError:
            continue
    return None


def _at(data: object, *path: str) -> Any:
    for name in path:
        data = data.get(name) if isinstance(data, Mapping) else None
    return data
