"""What the canary needs: a server nobody polls, a plain client, deployments whose runs stay where a test puts them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, State, StateType

from orchestrator.stack import Stack


@dataclass
class Perch:
    """A pool without worker and three deployments: two of one flow, one of another."""

    client: PrefectClient
    pool: str
    one: UUID
    two: UUID
    other: UUID

    async def create(self, deployment: UUID | None = None, **more: Any) -> FlowRun:
        return await self.client.create_flow_run_from_deployment(deployment or self.one, **more)

    async def put(self, run: FlowRun, *phases: StateType | str) -> str:
        """Propose these states one after the other; the server's answer to the last."""
        status = ""
        for phase in phases:
            state: State[None] = State(type=StateType(phase))
            status = (await self.client.set_flow_run_state(run.id, state)).status.value
        return status

    async def state_of(self, run: FlowRun) -> StateType:
        state = (await self.client.read_flow_run(run.id)).state
        assert state is not None
        return state.type

    async def post(self, route: str, body: Any) -> httpx.Response:
        """A request as it is, without the client's retries and judgements."""
        async with httpx.AsyncClient(base_url=str(self.client.api_url), timeout=60) as plain:
            return await plain.post(route, json=body)


@pytest.fixture
async def perch(stack: Stack) -> AsyncIterator[Perch]:
    mark = uuid.uuid4().hex[:8]
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=f"canary-{mark}", type="process", concurrency_limit=1))
        schema = {"type": "object", "properties": {"n": {"type": "integer"}, "batch": {}}}
        ids = []
        for flow, name in (("canary", "one"), ("canary", "two"), ("other", "one")):
            flow_id = await client.create_flow_from_name(f"{flow}-{mark}")
            ids.append(
                await client.create_deployment(
                    flow_id, name, work_pool_name=f"canary-{mark}", parameter_openapi_schema=schema,
                    enforce_parameter_schema=True, tags=["deployed"],
                )
            )  # fmt: skip
        yield Perch(client, f"canary-{mark}", *ids)
