"""One bench per engine: what a contract test may do to it from outside, as a worker, a child or a person would."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Protocol
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import State, StateType

from orchestrator.core.model import Phase, Progress, RunId
from orchestrator.engine import progress as progress_artifact
from orchestrator.engine.gateway import Deployment, Gateway, Run, Submission
from orchestrator.engine.memory import INSTANT, MemoryGateway, complete
from orchestrator.engine.parent import PrefectGateway
from orchestrator.stack import Stack

POOL_LIMIT, QUEUE_LIMIT = 4, 2


class Bench(Protocol):
    """A gateway, and hands on the engine behind it. No worker takes any run: tests set the states."""

    gateway: Gateway
    deployment: Deployment
    sibling: Deployment  # another deployment of the same flow
    stranger: Deployment  # a deployment of another flow

    async def set_state(self, run_id: RunId, phase: Phase, *, force: bool = False) -> str: ...
    async def delete(self, run_id: RunId) -> None: ...
    async def report(self, run_id: RunId, progress: Progress) -> None: ...
    async def pause(self) -> None: ...
    async def read_page(self, run_id: RunId | None, key: str) -> list[str]: ...


class MemoryBench:
    def __init__(self) -> None:
        self.gateway = MemoryGateway(complete, capacity=POOL_LIMIT, latencies=INSTANT)
        self._engine = self.gateway.engine
        self._engine.paused = True
        self.deployment = self._engine.deploy("contract/one")
        self.sibling = self._engine.deploy("contract/two")
        self.stranger = self._engine.deploy("other/one")

    async def set_state(self, run_id: RunId, phase: Phase, *, force: bool = False) -> str:
        if force:
            self._engine.force(run_id, phase)
            return "ACCEPT"
        return self._engine.propose(run_id, phase)[0]

    async def delete(self, run_id: RunId) -> None:
        self._engine.delete(run_id)

    async def report(self, run_id: RunId, progress: Progress) -> None:
        self._engine.report(run_id, progress)

    async def pause(self) -> None:
        self._engine.paused = True

    async def read_page(self, run_id: RunId | None, key: str) -> list[str]:
        return [page for place, page in self._engine.pages.items() if place == (run_id, key)]


class PrefectBench:
    deployment: Deployment
    sibling: Deployment
    stranger: Deployment

    def __init__(self, client: PrefectClient) -> None:
        self._client = client
        self.gateway = PrefectGateway()

    async def set_up(self) -> None:
        """A work pool without a worker, two flows, three deployments; names of their own, as the server is shared."""
        mark = uuid.uuid4().hex[:8]
        self._pool = f"contract-{mark}"
        await self._client.create_work_pool(
            WorkPoolCreate(name=self._pool, type="process", concurrency_limit=POOL_LIMIT)
        )
        await self._client.create_work_queue(name="narrow", work_pool_name=self._pool, concurrency_limit=QUEUE_LIMIT)
        names = []
        for flow_name, deployment_name in (("contract", "one"), ("contract", "two"), ("other", "one")):
            flow_id = await self._client.create_flow_from_name(f"{flow_name}-{mark}")
            await self._client.create_deployment(flow_id, deployment_name, work_pool_name=self._pool)
            names.append(f"{flow_name}-{mark}/{deployment_name}")
        found = [await self.gateway.find_deployment(name) for name in names]
        self.deployment, self.sibling, self.stranger = found

    async def set_state(self, run_id: RunId, phase: Phase, *, force: bool = False) -> str:
        state: State[None] = State(type=StateType(phase.value))
        return (await self._client.set_flow_run_state(UUID(run_id), state, force=force)).status.value

    async def delete(self, run_id: RunId) -> None:
        await self._client.delete_flow_run(UUID(run_id))

    async def report(self, run_id: RunId, progress: Progress) -> None:
        data, metadata = progress_artifact.encode(progress, 1000, "job")
        await self._client.create_artifact(
            ArtifactCreate(type="progress", data=data, metadata_=metadata, flow_run_id=UUID(run_id))
        )

    async def pause(self) -> None:
        await self._client.update_work_pool(self._pool, WorkPoolUpdate(is_paused=True))

    async def read_page(self, run_id: RunId | None, key: str) -> list[str]:
        from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

        found = await self._client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
        return [str(page.data) for page in found if (str(page.flow_run_id) if page.flow_run_id else None) == run_id]


@pytest.fixture
async def deployment(stack: Stack) -> Deployment:
    """A deployment of a flow of its own on the real server; nobody takes its runs."""
    name = f"contract-{uuid.uuid4().hex[:8]}"
    async with get_client() as client:
        await client.create_deployment(await client.create_flow_from_name(name), "one")
    gateway = PrefectGateway()
    try:
        return await gateway.find_deployment(f"{name}/one")
    finally:
        await gateway.close()


@pytest.fixture(params=["memory", pytest.param("prefect", marks=pytest.mark.real)])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """Both engines, one after the other."""
    if request.param == "memory":
        yield MemoryBench()
        return
    request.getfixturevalue("stack")
    async with get_client() as client:
        prefect = PrefectBench(client)
        await prefect.set_up()
        yield prefect
        await prefect.gateway.close()
        await asyncio.sleep(0)


@pytest.fixture
def create(bench: Bench):
    """Creates a run, by default of the bench's deployment under a key of its own."""

    async def create(key: str | None = None, deployment: Deployment | None = None) -> Run:
        return await bench.gateway.submit(
            Submission(
                key=key or uuid.uuid4().hex,
                deployment=deployment or bench.deployment,
                name="contract 1/1",
                parameters={"batch": {"n": 1}},
                tags=["orchestrator"],
            )
        )

    return create
