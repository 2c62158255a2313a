"""What both gateways promise: the simulated engine and a real Prefect server answer alike."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable

import pytest

from orchestrator.core.model import Counts, Failure, Phase, Progress, RunId
from orchestrator.engine.gateway import CancelReply, Deployment, Run
from orchestrator.engine.pace import reading
from orchestrator.engine.transitions import answer
from orchestrator.errors import DeploymentNotFoundError, SubmissionRefusedError

from .conftest import POOL_LIMIT, Bench

Create = Callable[..., Awaitable[Run]]
TERMINAL = [phase for phase in Phase if phase.is_terminal]


def stranger_ids(count: int) -> list[RunId]:
    return [RunId(str(uuid.uuid4())) for _ in range(count)]


async def phase_of(bench: Bench, run_id: RunId) -> Phase:
    return (await bench.gateway.read_runs([run_id]))[run_id].phase


# creating


async def test_a_created_run_is_scheduled_and_has_the_key_and_name_it_was_given(bench: Bench, create: Create) -> None:
    run = await create("some-key")
    assert (run.key, run.name, run.deployment_id) == ("some-key", "contract 1/1", bench.deployment.id)
    assert (run.phase, run.state_name, run.started) == (Phase.SCHEDULED, "Scheduled", False)
    assert run.since is not None
    assert await bench.gateway.read_runs([run.id]) == {run.id: run}


async def test_creating_twice_under_one_key_gives_one_run(bench: Bench, create: Create) -> None:
    runs = await asyncio.gather(*(create("same") for _ in range(4)))
    assert len({run.id for run in runs}) == 1


async def test_a_key_finds_its_old_run_for_ever(bench: Bench, create: Create) -> None:
    run = await create("old")
    await bench.gateway.request_cancel([run.id])
    again = await create("old")
    assert (again.id, again.phase) == (run.id, Phase.CANCELLED)


async def test_a_key_counts_within_its_flow(bench: Bench, create: Create) -> None:
    run = await create("scoped")
    other = await create("scoped", bench.stranger)
    assert other.id != run.id
    with pytest.raises(SubmissionRefusedError, match="another deployment"):
        await create("scoped", bench.sibling)


async def test_a_deployment_that_is_gone_refuses(bench: Bench, create: Create) -> None:
    gone = Deployment(
        id=str(uuid.uuid4()), name="contract/gone", flow_id=bench.deployment.flow_id, flow_name="contract",
        pool=None, pool_type=None, queue=None, parameter_schema={},
    )  # fmt: skip
    with pytest.raises(SubmissionRefusedError, match="contract/gone"):
        await create(deployment=gone)


# looking up


async def test_a_deployment_is_found_by_name_and_by_id(bench: Bench) -> None:
    for name in (bench.deployment.name, bench.deployment.id):
        found = await bench.gateway.find_deployment(name)
        assert (found.id, found.flow_id) == (bench.deployment.id, bench.deployment.flow_id)
    assert bench.deployment.flow_id == bench.sibling.flow_id != bench.stranger.flow_id


async def test_an_unknown_deployment_names_similar_ones(bench: Bench) -> None:
    with pytest.raises(DeploymentNotFoundError) as told:
        await bench.gateway.find_deployment(bench.deployment.name[:-1] + "ne")
    assert bench.deployment.name in told.value.near
    assert bench.deployment.name in str(told.value)


@pytest.mark.parametrize(
    "name", ["", "/", "contract", "contract/", "a/b/c", "contract/one?x=1", "../admin", "%2e%2e/x"]
)
async def test_what_is_no_name_is_not_found(bench: Bench, name: str) -> None:
    with pytest.raises(DeploymentNotFoundError):
        await bench.gateway.find_deployment(name)


async def test_the_smallest_limit_counts_and_a_pause_is_told(bench: Bench) -> None:
    seen = await bench.gateway.capacity(bench.deployment)
    assert seen.limit == POOL_LIMIT
    assert seen.limited_by is not None
    assert f"limit {POOL_LIMIT}" in seen.limited_by
    await bench.pause()
    assert (await bench.gateway.capacity(bench.deployment)).pool_paused


async def test_reading_takes_any_number_of_ids_and_leaves_out_what_is_gone(bench: Bench, create: Create) -> None:
    first, gone, last = [await create() for _ in range(3)]
    await bench.delete(gone.id)
    ids = [first.id, gone.id, *stranger_ids(400), last.id]
    assert set(await bench.gateway.read_runs(ids)) == {first.id, last.id}
    assert await bench.gateway.read_runs([]) == {}


async def test_keys_are_looked_up_in_pages_and_within_the_flow(bench: Bench, create: Create) -> None:
    a, b = await create("job/n/0/0"), await create("job/n/1/0")
    await create("job/n/2/0", bench.stranger)
    keys = ["job/n/0/0", *(f"job/n/{n}/9" for n in range(450)), "job/n/1/0", "job/n/2/0"]
    found = await bench.gateway.find_by_keys(bench.deployment.flow_id, keys)
    assert {key: run.id for key, run in found.items()} == {"job/n/0/0": a.id, "job/n/1/0": b.id}
    before = bench.gateway.requests
    await bench.gateway.find_by_keys(bench.deployment.flow_id, keys)
    assert bench.gateway.requests - before == 3


async def test_started_means_that_it_ran(bench: Bench, create: Create) -> None:
    ran, never = await create(), await create()
    await bench.set_state(ran.id, Phase.RUNNING)
    await bench.set_state(ran.id, Phase.CRASHED)
    await bench.set_state(never.id, Phase.CANCELLED)
    runs = await bench.gateway.read_runs([ran.id, never.id])
    assert (runs[ran.id].started, runs[never.id].started) == (True, False)


# cancelling


async def test_a_cancel_says_what_became_of_it_in_every_phase(bench: Bench, create: Create) -> None:
    scheduled, pending, running, paused, cancelling, ended, gone = [await create() for _ in range(7)]
    await bench.set_state(pending.id, Phase.PENDING)
    for run in (running, paused, cancelling, ended):
        await bench.set_state(run.id, Phase.RUNNING)
    await bench.set_state(paused.id, Phase.PAUSED)
    await bench.set_state(cancelling.id, Phase.CANCELLING)
    await bench.set_state(ended.id, Phase.COMPLETED)
    await bench.delete(gone.id)
    asked = [run.id for run in (scheduled, pending, running, paused, cancelling, ended, gone)]
    replies = await bench.gateway.request_cancel(asked)
    assert [replies[id_] for id_ in asked] == [
        CancelReply.CANCELLED,
        CancelReply.REQUESTED,
        CancelReply.REQUESTED,
        CancelReply.REQUESTED,
        CancelReply.REQUESTED,
        CancelReply.ENDED,
        CancelReply.GONE,
    ]
    assert await phase_of(bench, scheduled.id) is Phase.CANCELLED
    for run in (pending, running, paused, cancelling):
        assert await phase_of(bench, run.id) is Phase.CANCELLING  # asked is not done
    assert await phase_of(bench, ended.id) is Phase.COMPLETED


async def test_many_are_cancelled_in_chunks(bench: Bench, create: Create) -> None:
    run = await create()
    before = bench.gateway.requests
    replies = await bench.gateway.request_cancel([*stranger_ids(119), run.id])
    assert list(replies.values()).count(CancelReply.GONE) == 119
    assert replies[run.id] is CancelReply.CANCELLED
    assert bench.gateway.requests - before <= 6


@pytest.mark.parametrize("bench", ["memory"], indirect=True)
async def test_every_transition_is_answered_as_the_table_says(bench: Bench, create: Create) -> None:
    # A real server is asked for the same table by tests/canary.
    wrong = []
    for now in Phase:
        for proposed in Phase:
            run = await create()
            if now is Phase.CANCELLING:  # reached from a run that has begun: a scheduled one cannot be forced there
                await bench.set_state(run.id, Phase.RUNNING, force=True)
            if now is not Phase.SCHEDULED:
                await bench.set_state(run.id, now, force=True)
            got = await bench.set_state(run.id, proposed), await phase_of(bench, run.id)
            if got != answer(now, proposed):
                wrong.append((now, proposed, got))
    assert not wrong


# listening


@pytest.mark.parametrize("phase", TERMINAL)
async def test_a_wait_for_a_run_that_has_ended_returns_at_once(bench: Bench, create: Create, phase: Phase) -> None:
    run = await create()
    await bench.set_state(run.id, phase)
    async with asyncio.timeout(10):
        seen = await bench.gateway.wait(run.id, 3600)
    assert seen is not None
    assert (seen.id, seen.phase) == (run.id, phase)


async def test_a_wait_returns_soon_after_the_end_or_lets_a_reading_decide(bench: Bench, create: Create) -> None:
    # The event is published before the commit: now and then the wait reads the state before, and says None.
    for _ in range(3):
        run = await create()
        await bench.set_state(run.id, Phase.RUNNING)
        waiting = asyncio.create_task(bench.gateway.wait(run.id, 3600))
        await asyncio.sleep(0.7)
        assert not waiting.done()
        await bench.set_state(run.id, Phase.COMPLETED)
        async with asyncio.timeout(10):
            seen = await waiting
        if seen is not None:
            assert seen.phase is Phase.COMPLETED
            return
    pytest.fail("three waits in a row read a state before the commit")


async def test_a_wait_ends_with_nothing_when_nothing_ended_in_time(bench: Bench, create: Create) -> None:
    run = await create()
    loop = asyncio.get_running_loop()
    before = loop.time()
    assert await bench.gateway.wait(run.id, 1.5) is None
    assert 1.4 <= loop.time() - before < 6


async def test_a_wait_for_a_run_that_is_gone_ends_with_nothing(bench: Bench, create: Create) -> None:
    run = await create()
    await bench.delete(run.id)
    async with asyncio.timeout(10):
        assert await bench.gateway.wait(run.id, 3600) is None


async def test_a_wait_can_be_given_up(bench: Bench, create: Create) -> None:
    run = await create()
    waiting = asyncio.create_task(bench.gateway.wait(run.id, 3600))
    await asyncio.sleep(0.5)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(15):
            await waiting


# news and what is published


def news(batch: int, sequence: int) -> Progress:
    failure = Failure(7, "img-7", "ValueError", "no such thing")
    return Progress(batch, 0, sequence, Counts(sequence, 2, 1, {"ValueError": 2}, failure))


async def test_the_newest_progress_of_each_run_counts(bench: Bench, create: Create) -> None:
    one, two, silent = [await create() for _ in range(3)]
    for sequence in (1, 2, 3):
        await bench.report(one.id, news(1, sequence))
    await bench.report(two.id, news(2, 9))
    seen = await bench.gateway.read_progress([one.id, two.id, silent.id, *stranger_ids(150)])
    assert sorted(seen, key=lambda progress: progress.batch) == [news(1, 3), news(2, 9)]
    assert await bench.gateway.read_progress([]) == []


@pytest.mark.parametrize("on_run", [True, False])
async def test_the_page_is_made_once_and_replaced(bench: Bench, create: Create, on_run: bool) -> None:
    run_id = (await create()).id if on_run else None
    key = f"page-{uuid.uuid4().hex[:8]}"
    for text in ("# one", "# two", "# three"):
        await bench.gateway.publish_page(run_id, key, text)
    assert await bench.read_page(run_id, key) == ["# three"]


async def test_a_page_gets_a_line_once_and_none_is_made_for_one(bench: Bench, create: Create) -> None:
    run_id = (await create()).id
    key = f"page-{uuid.uuid4().hex[:8]}"
    await bench.gateway.add_to_page(run_id, key, "run again")
    assert await bench.read_page(run_id, key) == []
    await bench.gateway.publish_page(run_id, key, "# one")
    for _ in range(2):
        await bench.gateway.add_to_page(run_id, key, "run again")
    assert await bench.read_page(run_id, key) == ["# one\n\nrun again"]


async def test_an_event_never_raises(bench: Bench) -> None:
    await bench.gateway.emit("orchestrator.job.started", "job", {"total": 3, "odd": object()})
    await bench.gateway.emit("orchestrator.job.finished", "job", {"text": "x" * 3_000_000})


async def test_a_child_costs_at_most_five_requests(bench: Bench, create: Create) -> None:
    before = bench.gateway.requests
    run = await create()
    await bench.set_state(run.id, Phase.COMPLETED)
    await bench.gateway.wait(run.id, 60)
    assert bench.gateway.requests - before <= 5


# turns


async def test_a_reading_that_waits_for_its_turn_is_asked_anew_once_it_is_urgent(bench: Bench, create: Create) -> None:
    run, stops, loop = await create(), list[bool](), asyncio.get_running_loop()
    for _ in range(8):
        await bench.gateway.read_runs([run.id])
    bench.gateway.pace.limit(60)  # what was sent is held against it: the next reading waits for ten seconds
    began = loop.time()
    loop.call_later(1.0, stops.append, True)
    found = await reading(lambda: bench.gateway.read_runs([run.id]), lambda: bool(stops))
    assert set(found) == {run.id}
    assert 1.0 <= loop.time() - began < 4.0
