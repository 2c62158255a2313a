"""The door to a Prefect behind a proxy that wants a key, on HTTP and on websockets."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.settings import (
    PREFECT_API_KEY,
    PREFECT_API_URL,
    PREFECT_CLIENT_CUSTOM_HEADERS,
    PREFECT_CLOUD_API_URL,
    temporary_settings,
)

from orchestrator.core.model import Phase, RunId
from orchestrator.engine.gateway import CancelReply, Deployment, Submission
from orchestrator.engine.pace import Pace
from orchestrator.engine.parent import PrefectGateway
from orchestrator.errors import EngineError, EngineUnavailableError
from orchestrator.stack import Stack
from tests.cloud import KEY, CountingProxy, counting
from tests.support import aeventually

pytestmark = pytest.mark.real


@pytest.fixture
def guarded(stack: Stack) -> Iterator[CountingProxy]:
    with counting(stack.api_url, key=KEY) as proxy:
        yield proxy


@contextmanager
def client_of(proxy: CountingProxy, how: str) -> Iterator[None]:
    """This process as a client of the guarded API, with its key said in that way."""
    url = proxy.door("parent")
    settings = {
        "as Prefect Cloud": {PREFECT_API_URL: url, PREFECT_CLOUD_API_URL: url, PREFECT_API_KEY: KEY},
        "a key": {PREFECT_API_URL: url, PREFECT_API_KEY: KEY},
        "a header": {PREFECT_API_URL: url, PREFECT_CLIENT_CUSTOM_HEADERS: {"Authorization": f"Bearer {KEY}"}},
        "nothing": {PREFECT_API_URL: url},
    }[how]
    with temporary_settings(settings):
        yield


def submission(deployment: Deployment) -> Submission:
    return Submission(key=uuid.uuid4().hex, name="k 1/1", parameters={"batch": {"n": 1}}, deployment=deployment)


@pytest.mark.parametrize("how", ["as Prefect Cloud", "a key", "a header"])
async def test_a_job_can_be_run_with_a_key(how: str, guarded: CountingProxy, deployment: Deployment) -> None:
    with client_of(guarded, how):
        gateway = PrefectGateway()
        run = await gateway.submit(submission(deployment))
        assert set(await gateway.read_runs([run.id])) == {run.id}
        await gateway.publish_page(run.id, "page", "text")
        assert await gateway.request_cancel([run.id]) == {run.id: CancelReply.CANCELLED}
        await gateway.close()
    assert not guarded.of("parent", 401)


@pytest.mark.parametrize(
    ("how", "hears"),
    # Without the header, Prefect's client says its key on a websocket only to an address that it takes for Cloud's.
    # Source: prefect events/clients.py `get_events_subscriber`, 3.8.8.
    [("as Prefect Cloud", True), ("a header", True), ("a key", False)],
)
async def test_an_end_is_heard_where_the_websocket_carries_the_key_and_else_read(
    how: str, hears: bool, guarded: CountingProxy, deployment: Deployment
) -> None:
    with client_of(guarded, how):
        gateway = PrefectGateway()
        run = await gateway.submit(submission(deployment))
        waiting = asyncio.create_task(gateway.wait(run.id, 60))

        async def asked() -> bool:
            return any(asked.is_websocket for asked in guarded.of("parent")) or waiting.done()

        await aeventually(asked, 30, "the websocket")
        await asyncio.sleep(1.0)  # the wait has read the run by then; an end before that would be read, not heard
        async with get_client() as client:
            await client.set_flow_run_state(UUID(run.id), State(type=StateType.COMPLETED), force=True)
        async with asyncio.timeout(60):
            heard = await waiting
        assert (heard is not None) is hears
        assert (await gateway.read_runs([run.id]))[run.id].phase is Phase.COMPLETED
        await gateway.close()
    refused = [asked for asked in guarded.asked if asked.answer == 401]
    assert bool(refused) is not hears


async def test_without_the_key_the_credentials_are_what_is_said_to_be_wrong(
    guarded: CountingProxy, deployment: Deployment
) -> None:
    with client_of(guarded, "nothing"):
        gateway = PrefectGateway()
        with pytest.raises(EngineError, match="PREFECT_API_KEY") as told:
            await gateway.read_runs([RunId(str(uuid.uuid4()))])
        assert not isinstance(told.value, EngineUnavailableError)
        assert KEY not in str(told.value)
        await gateway.close()


async def test_the_parents_requests_keep_their_budget_on_the_wire(stack: Stack, deployment: Deployment) -> None:
    """Counted by the proxy: creations, readings, pages and cancels together, whatever the minute."""
    with counting(stack.api_url) as proxy, temporary_settings({PREFECT_API_URL: proxy.door("parent")}):
        gateway = PrefectGateway(pace=Pace(300))
        loop = asyncio.get_running_loop()
        began = loop.time()
        run = await gateway.submit(submission(deployment))
        while loop.time() - began < 4:
            await gateway.read_runs([run.id])
        assert (await gateway.request_cancel([run.id]))[run.id] is CancelReply.CANCELLED
        await gateway.close()
    sent = [asked.at for asked in proxy.of("parent")]
    assert gateway.requests == len(sent)
    seconds = sent[-1] - sent[0]
    assert len(sent) <= 20 + 4.6 * seconds  # the burst of a budget of 300, and 4.5 a second
    assert len(sent) >= 12


async def test_a_server_that_turns_requests_away_slows_the_door_and_fails_nothing(
    stack: Stack, deployment: Deployment
) -> None:
    said: list[str] = []
    with (
        counting(stack.api_url, most=8, seconds=3) as proxy,
        temporary_settings({PREFECT_API_URL: proxy.door("parent")}),
    ):
        gateway = PrefectGateway(pace=Pace(say=said.append))
        runs = [await gateway.submit(submission(deployment)) for _ in range(6)]
        found = await gateway.read_runs([run.id for run in runs])
        await gateway.request_cancel(list(found))
        await gateway.close()
    assert len({run.id for run in runs}) == 6
    assert set(found) == {run.id for run in runs}
    assert proxy.count("parent")[429] >= 1
    assert proxy.count("parent")[429] <= 10  # it waits as long as it is asked to, instead of trying
    assert len(said) == 1
    assert "asks for fewer requests" in said[0]


async def test_a_websocket_that_is_turned_away_slows_the_door_too(stack: Stack, deployment: Deployment) -> None:
    with (
        counting(stack.api_url, most=30, seconds=60) as proxy,
        temporary_settings({PREFECT_API_URL: proxy.door("parent")}),
    ):
        gateway = PrefectGateway()
        run = await gateway.submit(submission(deployment))
        proxy.limit_now(use_up=("parent", 0))
        assert await gateway.wait(run.id, 30) is None
        await gateway.close()
    assert [(asked.is_websocket, asked.answer) for asked in proxy.of("parent") if asked.is_websocket] == [(True, 429)]
    assert gateway.pace.turned_away == 1
