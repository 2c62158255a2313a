"""The simulated engine behaves as Prefect does where a parent can tell, and goes wrong exactly as it is told to."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable

import pytest

from orchestrator.core.model import Counts, Phase, Progress, RunId
from orchestrator.engine import virtual
from orchestrator.engine.faults import Fate, Faults, ProgressFault, Rates, ReadFault, SubmitFault, WaitFault
from orchestrator.engine.gateway import CancelReply, Submission
from orchestrator.engine.memory import INSTANT, MemoryGateway, SimulatedRun, complete
from orchestrator.errors import EngineUnavailableError, SubmissionRefusedError, SubmissionUnknownError


async def sleeper(run: SimulatedRun) -> Phase:
    await asyncio.sleep(100)
    return Phase.COMPLETED


async def create(gateway: MemoryGateway, key: str = "k") -> RunId:
    deployment = await gateway.find_deployment("simulated/batches")
    return (await gateway.submit(Submission(key=key, deployment=deployment, name=key, parameters={}))).id


def play(story: Callable[[MemoryGateway], Awaitable[None]], child=sleeper, **options) -> MemoryGateway:
    gateway = MemoryGateway(child, **options)

    async def main() -> None:
        await story(gateway)
        await gateway.engine.shut_down()

    virtual.run(main())
    return gateway


async def phase(gateway: MemoryGateway, run_id: RunId) -> Phase:
    return (await gateway.read_runs([run_id]))[run_id].phase


def test_a_run_goes_from_scheduled_to_completed_in_the_time_its_parts_take() -> None:
    async def story(gateway: MemoryGateway) -> None:
        run_id = await create(gateway)
        seen = [await phase(gateway, run_id)]
        await asyncio.sleep(1)
        seen.append(await phase(gateway, run_id))
        await asyncio.sleep(1.5)
        seen.append(await phase(gateway, run_id))
        run = await gateway.wait(run_id, 1000)
        assert run is not None
        assert [*seen, run.phase] == [Phase.SCHEDULED, Phase.PENDING, Phase.RUNNING, Phase.COMPLETED]
        assert asyncio.get_running_loop().time() == pytest.approx(102.4, abs=0.2)

    play(story)


def test_what_the_pool_has_no_room_for_waits_and_is_called_late() -> None:
    async def story(gateway: MemoryGateway) -> None:
        ids = [await create(gateway, f"k{n}") for n in range(5)]
        await asyncio.sleep(20)
        runs = await gateway.read_runs(ids)
        assert [runs[i].phase for i in ids] == [Phase.RUNNING] * 2 + [Phase.SCHEDULED] * 3
        assert runs[ids[2]].state_name == "Late"
        assert (await gateway.capacity(gateway.engine.deployments["simulated/batches"])).limit == 2
        # Cancelling holds no slot of the pool: the next one starts although the first still runs.
        assert await gateway.request_cancel([ids[0]]) == {ids[0]: CancelReply.REQUESTED}
        await asyncio.sleep(3)
        assert [await phase(gateway, i) for i in ids[:3]] == [Phase.CANCELLING, Phase.RUNNING, Phase.RUNNING]

    gateway = play(story, capacity=2)
    assert gateway.engine.max_unsettled == 5


def test_a_cancel_while_pending_is_finished_by_the_servers_timeout_alone() -> None:
    async def story(gateway: MemoryGateway) -> None:
        run_id = await create(gateway)
        await asyncio.sleep(1)
        assert (await gateway.request_cancel([run_id]))[run_id] is CancelReply.REQUESTED
        await asyncio.sleep(290)
        assert await phase(gateway, run_id) is Phase.CANCELLING
        await asyncio.sleep(11)
        run = (await gateway.read_runs([run_id]))[run_id]
        assert (run.phase, run.started) == (Phase.CANCELLED, False)

    play(story)


def test_a_child_that_listens_ends_itself_and_one_that_hangs_is_killed() -> None:
    heard: list[float] = []

    async def listener(run: SimulatedRun) -> Phase:
        await run.cancel_requested.wait()
        heard.append(asyncio.get_running_loop().time())
        if run.submission.name == "hangs":
            await asyncio.sleep(10_000)
        return Phase.COMPLETED  # too late: it is being cancelled

    async def story(gateway: MemoryGateway) -> None:
        ids = [await create(gateway, "ends"), await create(gateway, "hangs")]
        await asyncio.sleep(10)
        await gateway.request_cancel(ids)
        await asyncio.sleep(4)
        assert [await phase(gateway, i) for i in ids] == [Phase.CANCELLED, Phase.CANCELLING]
        await asyncio.sleep(31)
        assert await phase(gateway, ids[1]) is Phase.CANCELLED

    play(story, listener)
    assert len(heard) == 2


def test_creations_go_wrong_as_scripted() -> None:
    async def story(gateway: MemoryGateway) -> None:
        gateway.faults.next_submits(
            SubmitFault.BUSY,
            SubmitFault.BUSY,
            None,
            SubmitFault.LOST_ANSWER,
            SubmitFault.LOST_REQUEST,
            SubmitFault.REFUSED,
        )
        await create(gateway, "busy")
        with pytest.raises(SubmissionUnknownError) as lost:
            await create(gateway, "lost")
        assert lost.value.key == "lost"
        assert list(await gateway.find_by_keys("flow:simulated", ["busy", "lost", "never"])) == ["busy", "lost"]
        with pytest.raises(SubmissionUnknownError):
            await create(gateway, "never")
        assert "never" not in await gateway.find_by_keys("flow:simulated", ["never"])
        with pytest.raises(SubmissionRefusedError):
            await create(gateway, "refused")

    assert len(play(story).engine.created_at) == 2


def test_an_outage_covers_its_time_and_its_methods() -> None:
    async def story(gateway: MemoryGateway) -> None:
        gateway.faults.outage(10, 20, "read_runs")
        await gateway.read_runs([])
        await asyncio.sleep(11)
        with pytest.raises(EngineUnavailableError):
            await gateway.read_runs([])
        await gateway.read_progress([])
        await asyncio.sleep(10)
        await gateway.read_runs([])

    play(story)


def test_waits_go_wrong_as_scripted() -> None:
    async def story(gateway: MemoryGateway) -> None:
        run_id, loop = await create(gateway), asyncio.get_running_loop()
        gateway.faults.next_waits(WaitFault.EARLY, WaitFault.NOT_FINAL, WaitFault.RAISES, WaitFault.NEVER)
        assert await gateway.wait(run_id, 50) is None
        run = await gateway.wait(run_id, 50)
        assert run is not None
        assert not run.phase.is_terminal
        with pytest.raises(EngineUnavailableError):
            await gateway.wait(run_id, 50)
        assert loop.time() < 1
        assert await gateway.wait(run_id, 200) is None  # the run ended meanwhile, and nobody said so
        assert loop.time() > 200
        assert (await gateway.wait(run_id, 50)) is not None

    play(story)


def news(sequence: int) -> Progress:
    return Progress(batch=0, attempt=0, sequence=sequence, counts=Counts(succeeded=sequence))


def test_progress_is_lost_late_and_repeated_as_scripted() -> None:
    async def reporter(run: SimulatedRun) -> Phase:
        for sequence in range(1, 5):
            run.report(news(sequence))
            await asyncio.sleep(2)
        await asyncio.sleep(100)
        return Phase.COMPLETED

    async def story(gateway: MemoryGateway) -> None:
        gateway.faults.next_progress(ProgressFault.LATE, ProgressFault.LOST, ProgressFault.REPEATED, None)
        run_id = await create(gateway)
        seen = []
        for _ in range(15):
            await asyncio.sleep(1)
            seen.append([p.sequence for p in await gateway.read_progress([run_id])])
        assert [3, 3] in seen
        assert [4] in seen
        assert seen[-1] == [1]  # the late one, over what is newer

    play(story, reporter)


@pytest.mark.parametrize(
    ("fate", "expected"),
    [
        (Fate(stuck_pending=True), Phase.PENDING),
        (Fate(crash_after=5), Phase.CRASHED),
        (Fate(vanish_after=5), Phase.RUNNING),
        (Fate(delete_after=5), None),
        (Fate(cancel_after=5), Phase.CANCELLED),
        (Fate(pause_after=5), Phase.PAUSED),
        (Fate(false_crash_after=5), Phase.CRASHED),
    ],
)
def test_a_run_meets_its_fate(fate: Fate, expected: Phase | None) -> None:
    async def story(gateway: MemoryGateway) -> None:
        run_id = await create(gateway)
        await asyncio.sleep(50)
        run = (await gateway.read_runs([run_id])).get(run_id)
        assert (run and run.phase) == expected
        if fate.false_crash_after:  # final is not for ever: its process goes on, and says so
            await asyncio.sleep(60)
            assert await phase(gateway, run_id) is Phase.COMPLETED

    play(story, faults=Faults(fates=lambda submission: fate))


def test_a_deaf_child_outlives_its_cancelled_state() -> None:
    ended: list[float] = []

    async def long(run: SimulatedRun) -> Phase:
        await asyncio.sleep(500)
        ended.append(asyncio.get_running_loop().time())
        return Phase.COMPLETED

    async def story(gateway: MemoryGateway) -> None:
        run_id = await create(gateway)
        await asyncio.sleep(10)
        await gateway.request_cancel([run_id])
        await asyncio.sleep(310)
        assert await phase(gateway, run_id) is Phase.CANCELLED
        assert not ended
        await asyncio.sleep(300)
        assert ended

    play(story, long, faults=Faults(fates=lambda submission: Fate(deaf=True)))


def test_a_run_cancelled_while_pending_may_rise_again() -> None:
    async def story(gateway: MemoryGateway) -> None:
        run_id = await create(gateway)
        await asyncio.sleep(1)
        await gateway.request_cancel([run_id])
        await asyncio.sleep(4)
        assert await phase(gateway, run_id) is Phase.CANCELLED
        await asyncio.sleep(5)
        assert await phase(gateway, run_id) is Phase.RUNNING

    play(story, faults=Faults(fates=lambda submission: Fate(resurrect_after=4, start_factor=3)))


def test_a_key_finds_its_old_run_even_cancelled_and_for_another_parent() -> None:
    async def story(gateway: MemoryGateway) -> None:
        run_id = await create(gateway)
        assert (await gateway.request_cancel([run_id]))[run_id] is CancelReply.CANCELLED
        other = MemoryGateway(engine=gateway.engine)
        assert await create(other) == run_id
        moment = gateway.engine.now()
        assert gateway.engine.created_after(moment) == 0

    play(story)


def trace(seed: int) -> list[tuple[str, str]]:
    async def story(gateway: MemoryGateway) -> None:
        for n in range(60):
            try:
                await create(gateway, f"k{n}")
            except (EngineUnavailableError, SubmissionUnknownError):
                pass
        await asyncio.sleep(2000)

    faults = Faults(seed=seed, rates=Rates(crash=0.3, delete=0.1))
    gateway = play(story, faults=faults, capacity=8)

    async def read() -> list[tuple[str, str]]:
        return [(run.key or "", run.phase) for run in gateway.engine.runs()]

    return virtual.run(read())


def test_a_seed_is_the_same_story_each_time_and_another_seed_another() -> None:
    assert trace(1) == trace(1)
    assert trace(1) != trace(2)


def test_fifty_thousand_runs_fit_in_little_memory() -> None:
    async def story(gateway: MemoryGateway) -> None:
        deployment = gateway.engine.deployments["simulated/batches"]
        for n in range(5_000):
            parameters = {"batch": {"job": "j", "folder": "/x" * 40, "hash": "0" * 64, "n": n}}
            submission = Submission(key=f"j/n/{n}/0", deployment=deployment, name=f"f {n}/5000", parameters=parameters)
            await gateway.wait((await gateway.submit(submission)).id, 100)

    tracemalloc.start()
    try:
        gateway = play(story, complete, latencies=INSTANT)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(gateway.engine.created_at) == 5_000
    assert held < 5_000 * 1_000  # so 50,000 stay below 50 MB


def test_a_creation_on_its_way_is_carried_out_when_its_sender_is_gone() -> None:
    async def story(gateway: MemoryGateway) -> None:
        deployment = await gateway.find_deployment("simulated/batches")
        sender = asyncio.ensure_future(gateway.submit(Submission("k", deployment, "k", {})))
        await asyncio.sleep(0.015)  # sent, and not answered yet
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        assert not list(gateway.engine.runs())
        await asyncio.sleep(1)
        assert [run.key for run in gateway.engine.runs()] == ["k"]

    play(story)


def test_a_late_creation_appears_after_everybody_gave_it_up() -> None:
    async def story(gateway: MemoryGateway) -> None:
        gateway.faults.next_submits(SubmitFault.LATE)
        with pytest.raises(SubmissionUnknownError):
            await create(gateway)
        assert await gateway.find_by_keys("flow:simulated", ["k"]) == {}
        await asyncio.sleep(10)
        assert list(await gateway.find_by_keys("flow:simulated", ["k"])) == ["k"]
        assert gateway.faults.injected == {"creation late": 1}

    play(story)


def test_a_slow_answer_tells_what_was_true_when_it_was_asked() -> None:
    async def story(gateway: MemoryGateway) -> None:
        run_id = await create(gateway)
        gateway.faults.next_reads(ReadFault.SLOW)
        seen = (await gateway.read_runs([run_id]))[run_id].phase
        assert (seen, await phase(gateway, run_id)) == (Phase.SCHEDULED, Phase.RUNNING)

    play(story)


def test_news_that_swapped_places_tells_the_older_last() -> None:
    async def story(gateway: MemoryGateway) -> None:
        run_id = await create(gateway)
        gateway.faults.next_progress(None, ProgressFault.SWAPPED)
        for sequence in (1, 2, 3):
            gateway.engine.report(run_id, Progress(0, 0, sequence, Counts(sequence)))
        assert [p.sequence for p in await gateway.read_progress([run_id])] == [2]

    play(story)
