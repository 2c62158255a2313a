"""What `doctor`, `deploy` and `run --detach` ask of a real Prefect."""

from __future__ import annotations

import uuid

import prefect
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate

from orchestrator.core.model import Phase, RunId
from orchestrator.engine import admin as admin_door
from orchestrator.engine.admin import open_admin
from orchestrator.errors import ConfigurationError, EngineError, StorageError
from orchestrator.flows.sharing import check_seen
from orchestrator.stack import Stack
from orchestrator.stack.containers import docker_template

pytestmark = pytest.mark.real


async def test_the_server_says_who_it_is(stack: Stack) -> None:
    async with open_admin() as admin:
        server = await admin.server()
    assert (server.url, server.cloud) == (stack.api_url, False)
    assert server.version == server.client_version == prefect.__version__
    assert server.database == "sqlite"
    assert server.cancelling_timeout_seconds is not None
    assert server.lease_storage is not None


async def test_pools_are_told_with_their_workers(stack: Stack) -> None:
    async with open_admin() as admin:
        pool = await admin.pool(stack.pool)
        assert pool in await admin.pools()
        assert await admin.pool("no-such-pool") is None
    assert pool is not None
    assert (pool.type, pool.paused, pool.workers_online) == ("process", False, 1)


async def test_a_process_pool_is_created_once_and_never_taken_from_another_type(stack: Stack) -> None:
    name = f"admin-{uuid.uuid4().hex[:8]}"
    async with open_admin() as admin:
        assert await admin.ensure_pool(name) is True
        assert await admin.ensure_pool(name) is False
        assert (await admin.pool(name)).workers_online == 0
        async with get_client() as client:
            await client.create_work_pool(WorkPoolCreate(name=f"{name}-d", type="docker"))
        with pytest.raises(ConfigurationError, match="docker"):
            await admin.ensure_pool(f"{name}-d")


async def test_a_docker_pool_says_what_its_containers_are_made_from_and_see(stack: Stack) -> None:
    name = f"admin-{uuid.uuid4().hex[:8]}"
    async with open_admin() as admin:
        template = docker_template(image="mine:1", volumes=["/srv/jobs:/srv/jobs"])
        assert await admin.ensure_pool(name, "docker", template) is True
        assert await admin.ensure_pool(name, "docker", template) is False
        pool = await admin.pool(name)
        assert pool is not None
        assert (pool.type, pool.image) == ("docker", "mine:1")
        assert pool.volumes == ("/srv/jobs:/srv/jobs",)
        check_seen("/srv/jobs/a", pool, "runs")
        with pytest.raises(StorageError, match="cannot see"):
            check_seen("/srv", pool, "runs")
        async with get_client() as client:
            flow = await client.create_flow_from_name(name)
            await client.create_deployment(flow, "plain", work_pool_name=name)
            await client.create_deployment(flow, "own", work_pool_name=name, job_variables={"volumes": ["x:/data"]})
        plain, own = [await admin.find_deployment(f"{name}/{which}") for which in ("plain", "own")]
    assert (plain.volumes, own.volumes) == (("/srv/jobs:/srv/jobs",), ("x:/data",))


async def test_a_run_is_started_and_read_again(stack: Stack) -> None:
    name = f"admin-{uuid.uuid4().hex[:8]}"
    async with get_client() as client:
        await client.create_deployment(await client.create_flow_from_name(name), "one")
    async with open_admin() as admin:
        assert f"{name}/one" in await admin.deployments()
        deployment = await admin.find_deployment(f"{name}/one")
        run = await admin.trigger(deployment, {"x": 1}, name="started", tags=["t"], idempotency_key="k")
        assert (run.name, run.phase) == ("started", Phase.SCHEDULED)
        assert (await admin.trigger(deployment, {"x": 1}, idempotency_key="k")).id == run.id
        assert await admin.read_run(run.id) == run
        assert await admin.read_run(RunId(str(uuid.uuid4()))) is None
        assert await admin.read_run(RunId("nonsense")) is None
        with pytest.raises(EngineError, match="524,288"):
            await admin.trigger(deployment, {"x": "y" * 600_000})


@pytest.mark.parametrize(("version", "wrong"), [("0.120.0", False), ("0.150.1", False), ("0.163.0", True)])
def test_a_fastapi_that_breaks_the_server_is_named(version: str, wrong: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_door.importlib.metadata, "version", lambda name: version)
    problem = admin_door.fastapi_problem()
    assert (problem is not None) is wrong
    if problem:
        assert version in problem
        assert "fastapi<0.151" in problem
