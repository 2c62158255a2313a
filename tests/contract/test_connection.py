"""The door to a real Prefect while the connection does what connections do."""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    DeploymentFilter,
    DeploymentFilterId,
)
from prefect.settings import PREFECT_API_URL, temporary_settings

from orchestrator.core.model import Phase, RunId
from orchestrator.engine import cancelling, submitting
from orchestrator.engine.admin import open_admin
from orchestrator.engine.gateway import CancelReply, Deployment, Submission
from orchestrator.engine.parent import PrefectGateway
from orchestrator.errors import EngineError, EngineUnavailableError, SubmissionRefusedError, SubmissionUnknownError
from orchestrator.stack import Stack

from .proxy import Fault, Proxy, proxied

pytestmark = pytest.mark.real


@pytest.fixture
async def proxy(stack: Stack) -> AsyncIterator[Proxy]:
    async with proxied(stack.api_url, only="create_flow_run") as proxy:
        with temporary_settings({PREFECT_API_URL: proxy.url}):
            yield proxy


@pytest.fixture
async def gateway(proxy: Proxy) -> AsyncIterator[PrefectGateway]:
    gateway = PrefectGateway()
    yield gateway
    await gateway.close()


def submission(deployment: Deployment, **changes: Any) -> Submission:
    options: dict[str, Any] = {"key": uuid.uuid4().hex, "name": "c 1/1", "parameters": {"batch": {"n": 1}}}
    return Submission(deployment=deployment, **{**options, **changes})


async def test_a_locked_database_is_asked_again_at_once(
    gateway: PrefectGateway, proxy: Proxy, deployment: Deployment
) -> None:
    proxy.script.extend([Fault.BUSY] * 4 + [Fault.LOST_REQUEST])
    began = time.monotonic()
    run = await gateway.submit(submission(deployment))
    assert run.phase is Phase.SCHEDULED
    assert time.monotonic() - began < 5  # Prefect's client alone would wait 2 + 4 + 8 + 16 s
    assert len(proxy.seen) >= 6  # a busy server may have refused one of its own accord


async def test_a_lost_answer_is_asked_for_again_and_creates_nothing_twice(
    gateway: PrefectGateway, proxy: Proxy, deployment: Deployment
) -> None:
    proxy.script.extend([Fault.LOST_ANSWER, Fault.LOST_ANSWER])
    wanted = submission(deployment)
    run = await gateway.submit(wanted)
    assert {found.id for found in (await gateway.find_by_keys(deployment.flow_id, [wanted.key])).values()} == {run.id}
    async with get_client() as client:
        all_runs = await client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[uuid.UUID(deployment.id)]))
        )
    assert len(all_runs) == 1


@pytest.mark.parametrize("fault", [Fault.LOST_ANSWER, Fault.LOST_REQUEST])
async def test_when_nobody_can_tell_it_says_so(
    gateway: PrefectGateway, proxy: Proxy, deployment: Deployment, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitting, "_BUDGET_SECONDS", 0.5)
    proxy.always = fault
    wanted = submission(deployment)
    with pytest.raises(SubmissionUnknownError) as told:
        await gateway.submit(wanted)
    assert told.value.key == wanted.key
    found = await gateway.find_by_keys(deployment.flow_id, [wanted.key])
    assert len(found) == (1 if fault is Fault.LOST_ANSWER else 0)


async def test_a_request_limit_is_kept_and_is_no_failure(
    gateway: PrefectGateway, proxy: Proxy, deployment: Deployment
) -> None:
    proxy.script.append(Fault.TOO_MANY)
    began = time.monotonic()
    await gateway.submit(submission(deployment))
    assert 1.0 <= time.monotonic() - began < 4


async def test_what_prefect_refuses_is_told_with_its_reason(gateway: PrefectGateway, deployment: Deployment) -> None:
    with pytest.raises(SubmissionRefusedError, match="524,288") as told:
        await gateway.submit(submission(deployment, parameters={"batch": "x" * 600_000}))
    assert len(str(told.value)) < 700


async def test_a_run_of_another_batch_under_the_key_is_refused(gateway: PrefectGateway, deployment: Deployment) -> None:
    await gateway.submit(submission(deployment, key="mine"))
    with pytest.raises(SubmissionRefusedError, match="another batch"):
        await gateway.submit(submission(deployment, key="mine", parameters={"batch": {"n": 2}}))


async def test_the_children_get_what_the_job_says(
    gateway: PrefectGateway, deployment: Deployment, stack: Stack
) -> None:
    async with get_client() as client:
        flow_id = uuid.UUID(deployment.flow_id)
        await client.create_deployment(flow_id, "pooled", work_pool_name=stack.pool, paused=True)
        pooled = await gateway.find_deployment(f"{deployment.flow_name}/pooled")
        await client.create_work_queue(name="nobody-polls", work_pool_name=stack.pool)
        queues = await client.read_work_queues(work_pool_name=stack.pool)
        nobody = next(queue for queue in queues if queue.name == "nobody-polls")
        await client.update_work_queue(nobody.id, is_paused=True)
        wanted = submission(
            pooled, tags=["a", "b"], job_variables={"env": {"X": "1"}}, work_queue_name="nobody-polls", name="named"
        )
        run = await client.read_flow_run(uuid.UUID((await gateway.submit(wanted)).id))
    assert (run.name, set(run.tags), run.work_queue_name) == ("named", {"a", "b"}, "nobody-polls")
    assert run.job_variables == {"env": {"X": "1"}}
    assert run.parent_task_run_id is None
    assert (await gateway.capacity(pooled, "nobody-polls")).pool_paused
    assert not (await gateway.capacity(pooled)).pool_paused
    assert (await gateway.capacity(pooled)).workers_online == 1


async def test_requests_are_counted_as_they_cross_the_wire(stack: Stack, deployment: Deployment) -> None:
    async with proxied(stack.api_url, only="/api/") as proxy:
        with temporary_settings({PREFECT_API_URL: proxy.url}):
            gateway = PrefectGateway()
            proxy.script.extend([None, Fault.BUSY, None])
            run = await gateway.submit(submission(deployment))
            await gateway.read_runs([run.id])
            await gateway.request_cancel([run.id])
            await gateway.close()
    assert gateway.requests == len(proxy.seen) > 5


@pytest.mark.parametrize("fault", [Fault.NO_ROUTE, Fault.NOT_ALLOWED])
async def test_a_server_without_the_bulk_route_is_asked_one_by_one(
    stack: Stack, deployment: Deployment, fault: Fault
) -> None:
    async with proxied(stack.api_url, only="bulk_set_state") as proxy:
        proxy.always = fault
        with temporary_settings({PREFECT_API_URL: proxy.url}):
            gateway = PrefectGateway()
            run = await gateway.submit(submission(deployment))
            gone = RunId(str(uuid.uuid4()))
            replies = await gateway.request_cancel([run.id, gone])
            again = await gateway.request_cancel([run.id])
            await gateway.close()
    assert replies == {run.id: CancelReply.CANCELLED, gone: CancelReply.GONE}
    assert again == {run.id: CancelReply.ENDED}
    assert len(proxy.seen) == 1


async def test_a_proxy_without_a_server_behind_it_says_nothing_of_a_deployment(
    gateway: PrefectGateway, proxy: Proxy, deployment: Deployment
) -> None:
    proxy.script.extend([Fault.FOREIGN, Fault.FOREIGN])
    assert (await gateway.submit(submission(deployment))).phase is Phase.SCHEDULED
    assert len(proxy.seen) >= 3


async def test_nor_of_the_runs_that_are_to_be_cancelled(stack: Stack, deployment: Deployment) -> None:
    async with proxied(stack.api_url, only="/api/flow_runs/") as proxy:
        with temporary_settings({PREFECT_API_URL: proxy.url}):
            gateway = PrefectGateway()
            run = await gateway.submit(submission(deployment))
            proxy.always = Fault.FOREIGN
            with pytest.raises(EngineUnavailableError):
                await gateway.request_cancel([run.id])
            proxy.always = None
            assert await gateway.request_cancel([run.id]) == {run.id: CancelReply.CANCELLED}
            await gateway.close()
    assert "bulk_set_state" in proxy.seen[-1][1], "the route is not taken for missing"


async def test_what_prefect_took_before_it_was_away_is_told(
    stack: Stack, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancelling, "CHUNK", 2)
    gateway = PrefectGateway()
    runs = [(await gateway.submit(submission(deployment))).id for _ in range(4)]
    await gateway.close()
    async with proxied(stack.api_url, only="/api/flow_runs/") as proxy:
        proxy.script.append(None)
        proxy.always = Fault.BUSY
        with temporary_settings({PREFECT_API_URL: proxy.url}):
            gateway = PrefectGateway()
            replies = await gateway.request_cancel(runs)
            await gateway.close()
    assert replies == dict.fromkeys(runs[:2], CancelReply.CANCELLED)


class Slow(Proxy):
    """Every request takes half a second; counts the most at once."""

    most = now = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.5)
        try:
            await super().serve(reader, writer)
        finally:
            self.now -= 1


@pytest.mark.parametrize("broken", [False, True], ids=["all taken", "one is not"])
async def test_where_runs_are_cancelled_one_by_one_a_few_are_asked_at_once_and_one_costs_the_others_nothing(
    stack: Stack, deployment: Deployment, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = PrefectGateway()
    runs = [(await gateway.submit(submission(deployment))).id for _ in range(8)]
    await gateway.close()
    async with proxied(stack.api_url, only=runs[3] if broken else "bulk_set_state", make=Slow) as proxy:
        proxy.always = Fault.BUSY if broken else Fault.NO_ROUTE
        with temporary_settings({PREFECT_API_URL: proxy.url}):
            gateway = PrefectGateway()
            gateway._canceller._in_bulk = not broken
            replies = await gateway.request_cancel(runs)
            await gateway.close()
    assert replies == dict.fromkeys([r for r in runs if not broken or r != runs[3]], CancelReply.CANCELLED)
    assert 2 <= proxy.most <= 4


async def test_a_page_of_some_proxy_is_no_answer(stack: Stack, deployment: Deployment) -> None:
    async with proxied(stack.api_url, only="filter") as proxy:
        proxy.always = Fault.HTML
        with temporary_settings({PREFECT_API_URL: proxy.url}):
            gateway = PrefectGateway()
            with pytest.raises(EngineUnavailableError):
                await gateway.read_runs([RunId(str(uuid.uuid4()))])
            await gateway.close()


async def test_a_page_outlives_its_process_and_its_deletion(stack: Stack, deployment: Deployment) -> None:
    first, second = PrefectGateway(), PrefectGateway()
    run = await first.submit(submission(deployment))
    await first.publish_page(run.id, "job-page", "one")
    await second.publish_page(run.id, "job-page", "two")  # a parent started again continues the page
    async with get_client() as client:
        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[uuid.UUID(run.id)]))
        (page,) = await client.read_artifacts(artifact_filter=wanted)
        assert page.data == "two"
        await client.delete_artifact(page.id)
        await first.publish_page(run.id, "job-page", "three")
        (page,) = await client.read_artifacts(artifact_filter=wanted)
        assert page.data == "three"
    await first.close()
    await second.close()


@pytest.mark.parametrize("path", ["", "/apo", "/api/none"])
async def test_an_address_that_is_not_the_api_is_said(stack: Stack, path: str) -> None:
    with temporary_settings({PREFECT_API_URL: stack.ui_url + path}):
        gateway = PrefectGateway()
        with pytest.raises(EngineError, match="ends in /api"):
            await gateway.find_deployment("a/b")
        await gateway.close()


async def test_refused_credentials_are_no_outage(stack: Stack) -> None:
    async with proxied(stack.api_url, only="/api/") as proxy:
        proxy.always = Fault.UNAUTHORIZED
        with temporary_settings({PREFECT_API_URL: proxy.url}):
            gateway = PrefectGateway()
            with pytest.raises(EngineError, match="PREFECT_API_AUTH_STRING") as told:
                await gateway.find_deployment("a/b")
            assert not isinstance(told.value, EngineUnavailableError)
            await gateway.close()


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def test_a_server_that_is_not_there_is_named_with_the_remedy_and_without_the_password() -> None:
    url = f"http://someone:secret-word@127.0.0.1:{closed_port()}/api"
    with temporary_settings({PREFECT_API_URL: url}):
        gateway = PrefectGateway()
        for question in (
            gateway.find_deployment("a/b"),
            gateway.read_runs([RunId(str(uuid.uuid4()))]),
            gateway.request_cancel([RunId(str(uuid.uuid4()))]),
        ):
            with pytest.raises(EngineUnavailableError, match="PREFECT_API_URL") as told:
                await question
            assert "secret-word" not in str(told.value)
            assert "127.0.0.1" in str(told.value)
            assert "\n" not in str(told.value)
        assert await gateway.wait(RunId(str(uuid.uuid4())), 5) is None
        await gateway.close()
        async with open_admin() as admin:
            with pytest.raises(EngineUnavailableError):
                await admin.server()


async def test_no_server_configured_is_said_and_none_is_started() -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        gateway = PrefectGateway()
        with pytest.raises(EngineUnavailableError, match="no Prefect server is configured"):
            await gateway.find_deployment("a/b")


async def test_an_outage_is_told_and_the_same_gateway_goes_on_after_it(stack_factory: Callable[..., Stack]) -> None:
    stack = stack_factory(workers=0)
    with stack.activated():
        async with get_client() as client:
            flow_id = await client.create_flow_from_name("outage")
            await client.create_deployment(flow_id, "one")
        gateway = PrefectGateway()
        deployment = await gateway.find_deployment("outage/one")
        wanted = submission(deployment)
        run = await gateway.submit(wanted)
        waiting = asyncio.create_task(gateway.wait(run.id, 3600))
        await asyncio.sleep(1)
        await asyncio.to_thread(stack.stop_server)
        began = time.monotonic()
        with pytest.raises(EngineUnavailableError):
            await gateway.read_runs([run.id])
        assert time.monotonic() - began < 15
        async with asyncio.timeout(30):
            assert await waiting is None
        await asyncio.to_thread(stack.start_server)
        assert set(await gateway.read_runs([run.id])) == {run.id}
        assert (await gateway.submit(wanted)).id == run.id
        await gateway.close()
