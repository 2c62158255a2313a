"""The parent in trouble of its own: its storage away, a user's callback that raises, a page that cannot be shown.

Each of these once ended a job, or ended it with the wrong words.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.core.machine import events as ev
from orchestrator.core.model import ItemOutcome, Phase, StopCause, StopMode, StopRecord, Verdict
from orchestrator.engine.faults import Fate, Faults, SubmitFault
from orchestrator.engine.memory import SimulatedEngine
from orchestrator.engine.simulated import INSTANT, Latencies, SimulatedRun
from orchestrator.engine.virtual import run as run_virtually
from orchestrator.errors import StoreUnavailableError
from orchestrator.reactor import Reactor
from orchestrator.settings import Settings
from orchestrator.store import JobFolder, layout
from orchestrator.testing import SimulatedBatches, Simulation, outcomes, simulate, simulate_on

SMALL = {"batch_size": 5, "max_in_flight": 4}
_storage = (f"memory://trouble-{n}" for n in itertools.count())


def run_on(engine: SimulatedEngine, items: int = 40, *,
           meanwhile: Callable[[Reactor], Any] | None = None, **request: Any) -> Simulation:  # fmt: skip
    """A job in virtual time, and beside it what `meanwhile` does."""

    async def whole() -> Simulation:
        helpers: list[asyncio.Task[Any]] = []

        def begin(reactor: Reactor) -> None:
            if meanwhile is not None:
                helpers.append(asyncio.ensure_future(meanwhile(reactor)))

        wanted = {**SMALL, "storage": next(_storage), **request}
        try:
            simulation = await simulate_on(engine, range(items), on_reactor=begin, **wanted)
            for helper in helpers:
                if helper.done():
                    helper.result()
            return simulation
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            await engine.shut_down()

    return run_virtually(whole())


def engine_of(seconds: float = 0.5, process: Callable[[Any], Any] = lambda item: item, **more: Any) -> SimulatedEngine:
    return SimulatedEngine(SimulatedBatches(process, seconds_per_item=seconds), **more)


class Away:
    """A store that cannot be reached while `is_away`."""

    def __init__(self, store: Any) -> None:
        self._store, self.is_away = store, False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.is_away:
                raise StoreUnavailableError("the storage is away (simulated)")
            return found(*args, **kwargs)

        return call


def parents_store(reactor: Reactor) -> Away:
    """From now on the parent reaches its job folder through this; the children as before."""
    folder = reactor._job.folder
    folder.store = away = Away(folder.store)  # type: ignore[assignment]
    return away


# ---------------------------------------------------------------- storage


def test_storage_that_is_away_from_the_parent_for_five_minutes_costs_the_job_nothing_but_time():
    async def outage(reactor: Reactor) -> None:
        store = parents_store(reactor)
        await asyncio.sleep(4)
        store.is_away = True
        await asyncio.sleep(300)
        store.is_away = False

    engine = engine_of()
    simulation = run_on(engine, 60, meanwhile=outage)
    assert simulation.report.verdict is Verdict.COMPLETED
    assert simulation.report.items.succeeded == 60
    assert len(list(engine.runs())) == 12
    assert engine.max_unsettled <= 4


def test_while_storage_is_away_page_and_log_say_why_nothing_moves(caplog):
    pages: list[str] = []

    async def outage(reactor: Reactor) -> None:
        store = parents_store(reactor)
        await asyncio.sleep(4)
        store.is_away = True
        await asyncio.sleep(150)
        pages.extend(engine.pages.values())
        store.is_away = False

    engine = engine_of()
    with caplog.at_level(logging.INFO):
        simulation = run_on(engine, 60, meanwhile=outage)
    assert simulation.report.items.succeeded == 60
    assert any("**Waiting:** the job folder cannot be read: the storage is away" in page for page in pages)
    said = [r for r in caplog.records if r.getMessage().startswith("The job is held up")]
    assert len(said) == 3, "once a minute"
    assert said[0].levelname == "WARNING"
    assert any(r.getMessage() == "The job folder can be written and read again." for r in caplog.records)


def test_storage_that_never_comes_back_ends_the_job_with_a_report_that_accounts_for_every_item():
    async def outage(reactor: Reactor) -> None:
        store = parents_store(reactor)
        await asyncio.sleep(4)
        store.is_away = True
        await asyncio.sleep(100_000)

    simulation = run_on(engine_of(), 60, meanwhile=outage)
    report = simulation.report
    assert report.verdict is Verdict.FAILED
    assert "job folder cannot be read" in report.reason
    assert report.items.succeeded + report.items.failed + report.items.unknown + report.items.not_started == 60
    assert any("report could not be written" in note for note in report.notes)


def test_a_report_that_cannot_be_written_at_once_is_written_when_the_storage_is_back():
    async def outage(reactor: Reactor) -> None:
        store, write = parents_store(reactor), reactor._job.folder.write_report

        def written_last(report: Any) -> None:  # the storage goes away at the very moment of writing
            reactor._job.folder.write_report = write  # type: ignore[method-assign]
            store.is_away = True
            asyncio.get_running_loop().call_later(60, setattr, store, "is_away", False)
            write(report)

        reactor._job.folder.write_report = written_last  # type: ignore[method-assign]

    simulation = run_on(engine_of(), 10, meanwhile=outage)
    assert simulation.report.items.succeeded == 10
    assert simulation.seconds > 60
    assert simulation.folder.read_report()["verdict"] == "completed"


def test_a_control_that_cannot_be_read_does_not_hide_the_next():
    async def scale(reactor: Reactor) -> None:
        folder = reactor._job.folder
        await asyncio.sleep(1)
        folder.write_control({"max_in_flight": 2})
        folder.store.put("control/1.json", b"not JSON at all")
        folder.write_control({"max_in_flight": 6})

    simulation = run_on(engine_of(), 100, meanwhile=scale)
    assert simulation.report.max_in_flight_seen == 6


def test_outcomes_that_could_not_be_read_in_time_are_counted_once_the_storage_is_back():
    """A stop gives up on storage that is away after 30 s; the report, written later, says what the folder says."""

    async def outage(reactor: Reactor) -> None:
        store = parents_store(reactor)
        await asyncio.sleep(4)
        store.is_away = True
        reactor.post(ev.StopRequested(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "no more", "test")))
        await asyncio.sleep(70)
        store.is_away = False

    simulation = run_on(engine_of(), 60, meanwhile=outage)
    items, found = simulation.report.items, Counter(outcomes(simulation).values())
    assert items.succeeded >= 10
    assert {o: found[o] for o in ItemOutcome} == {o: getattr(items, o.value) for o in ItemOutcome}
    stop = simulation.folder.read_stop()
    assert stop is not None, "without it, a parent that takes over would go on with the job"


def controls_away(folder: JobFolder) -> None:
    def unreadable(after: int) -> list[Any]:
        raise StoreUnavailableError("the storage is away (simulated)")

    folder.read_controls = unreadable  # type: ignore[method-assign,assignment]


def stronger_stop_away(folder: JobFolder) -> None:
    get = folder.store.get

    def partly(name: str, *args: Any) -> bytes | None:
        if name == layout.stop(2):
            raise StoreUnavailableError("the storage is away (simulated)")
        return get(name, *args)

    folder.store.get = partly  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("mode", "away"), [(StopMode.CANCEL, controls_away), (StopMode.DRAIN, stronger_stop_away)], ids=["controls", "stop"]
)
def test_a_stop_is_obeyed_at_once_even_when_what_comes_after_it_cannot_be_read(mode, away):
    seen: list[float] = []

    async def stop(reactor: Reactor) -> None:
        folder = reactor._job.folder
        await asyncio.sleep(5.1)
        away(folder)
        folder.request_stop(StopRecord(mode, StopCause.REQUESTED, "from the shell", "cli"))
        while reactor.state.stop is None:
            await asyncio.sleep(0.1)
        seen.append(asyncio.get_running_loop().time())

    run_on(engine_of(), 400, meanwhile=stop, settings=Settings(fence_seconds=2))
    assert seen
    assert seen[0] <= 5.1 + 2.3


# ---------------------------------------------------------------- stops


def test_a_stop_that_the_children_see_before_the_parent_does_still_makes_the_job_cancelled():
    """The last children end by themselves, stopped, between two looks of the parent at the job folder."""
    seen: list[bool] = []

    async def stop(reactor: Reactor) -> None:
        folder, look = reactor._job.folder, reactor._job.times.fence
        await asyncio.sleep(10 * look + 0.01)  # just after a look
        folder.request_stop(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "from the shell", "cli"))
        while reactor.state.verdict is None:
            await asyncio.sleep(0.01)
        seen.append(asyncio.get_running_loop().time() < 12 * look)

    children = SimulatedBatches(lambda item: item, seconds_per_item=0.05, fence_seconds=0.1)
    engine = SimulatedEngine(children, latencies=Latencies(news=0.01))
    simulation = run_on(engine, 4000, batch_size=1000, meanwhile=stop)
    assert seen == [True], "the children were not quicker than the parent"
    assert simulation.report.verdict is Verdict.CANCELLED
    assert simulation.report.reason == "from the shell"
    assert simulation.report.exit_code == 4


def test_a_child_that_finds_the_stop_before_it_begins_tells_the_parent_of_it():
    """Until its next look the parent takes the child's end for a free place, and its cancel for somebody else's."""
    stopped: list[tuple[SimulatedEngine, float]] = []

    async def stop(reactor: Reactor) -> None:
        await asyncio.sleep(10 * reactor._job.times.fence + 0.01)  # just after a look
        reactor._job.folder.request_stop(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "from the shell", "cli"))
        stopped.append((engine, asyncio.get_running_loop().time()))

    latencies = Latencies(request=0.0, pickup=0.1, start=0.1, news=0.01)
    engine = SimulatedEngine(SimulatedBatches(lambda item: item, seconds_per_item=0.1), latencies=latencies)
    simulation = run_on(engine, 4000, batch_size=1, meanwhile=stop, settings=Settings(fence_seconds=5))
    ((engine, at),) = stopped
    assert engine.created_after(at + 0.3) == 0
    assert simulation.report.verdict is Verdict.CANCELLED
    assert not [note for note in simulation.report.notes if "someone else" in note]


def test_a_creation_that_comes_down_after_the_deadline_is_cancelled():
    """The answer to it arrives together with the last ledger: nobody is left to wait for its child."""
    faults = Faults()
    faults.next_submits(None, None, None, SubmitFault.LOST_ANSWER)
    faults.outage(1.0, 60.0, "find_by_keys", "submit")
    engine = engine_of(60.0, faults=faults, latencies=Latencies(request=0.2))

    async def stop(reactor: Reactor) -> None:
        await asyncio.sleep(2)
        reactor.post(ev.StopRequested(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "no more", "test")))

    simulation = run_on(engine, meanwhile=stop)
    report = simulation.report
    assert report.verdict is Verdict.CANCELLED
    assert report.batches.unconfirmed <= 1
    assert simulation.seconds < 45


# ---------------------------------------------------------------- what is for people only


def test_a_callback_that_raises_is_not_called_again_and_the_job_goes_on():
    calls: list[int] = []

    def broken(view: Any) -> None:
        calls.append(view.settled)
        raise ValueError("in the user's own code")

    simulation = simulate(lambda item: item, range(100), on_progress=broken, **SMALL)
    assert simulation.report.items.succeeded == 100
    assert len(calls) == 1


def test_a_page_that_cannot_be_shown_stops_no_job(monkeypatch):
    def broken(*args: Any) -> str:
        raise ZeroDivisionError("a bug of ours in what is for people only")

    monkeypatch.setattr("orchestrator.reactor.showing.live_page", broken)
    assert run_on(engine_of()).report.items.succeeded == 40


def test_after_an_outage_the_page_says_again_what_the_job_waits_for():
    faults = Faults()
    faults.outage(30.0, 60.0, "read_runs", "wait")
    engine = engine_of(faults=faults)
    engine.paused = True
    pages: list[str] = []

    async def look(reactor: Reactor) -> None:
        await asyncio.sleep(50)
        pages.extend(engine.pages.values())
        await asyncio.sleep(50)
        pages.extend(engine.pages.values())
        engine.paused = False

    simulation = run_on(engine, meanwhile=look)
    assert simulation.report.items.succeeded == 40
    assert "does not answer" in pages[0]
    assert "does not answer" not in pages[1]
    assert "paused" in pages[1]


def test_what_holds_a_job_up_is_asked_of_the_queue_that_its_children_wait_in(monkeypatch):
    engine = engine_of()
    engine.paused = True
    asked: list[str | None] = []

    async def look(reactor: Reactor) -> None:
        capacity = reactor._gateway.capacity

        async def spied(deployment: Any, work_queue_name: str | None = None) -> Any:
            asked.append(work_queue_name)
            return await capacity(deployment, work_queue_name)

        monkeypatch.setattr(reactor._gateway, "capacity", spied)
        await asyncio.sleep(60)
        engine.paused = False

    run_on(engine, meanwhile=look, work_queue_name="urgent")
    assert asked == ["urgent"]


# ---------------------------------------------------------------- items by value


def test_staged_items_that_are_gone_fail_the_job_and_the_children_in_flight_are_stopped():
    async def ten_seconds(run: SimulatedRun) -> Phase:
        await asyncio.sleep(10)
        return Phase.COMPLETED

    engine = SimulatedEngine(ten_seconds)
    engine.deploy("theirs/flow", is_batch_flow=False)
    engine.deployments["theirs/flow"].parameter_schema.update(  # type: ignore[attr-defined]
        {"type": "object", "properties": {"numbers": {"type": "array", "items": {"type": "integer"}}}}
    )

    async def lose(reactor: Reactor) -> None:
        await asyncio.sleep(1)
        store = reactor._job.folder.store
        for entry in store.list("items"):
            if "part" in entry.name:
                store.delete(entry.name)

    simulation = run_on(engine, deployment="theirs/flow", pass_items_as="list:numbers", meanwhile=lose)
    assert simulation.report.verdict is Verdict.FAILED
    assert "staged items of this job were removed" in simulation.report.reason
    assert simulation.report.items.not_started >= 20
    assert all(run.phase.is_terminal for run in engine.runs())


# ---------------------------------------------------------------- whatever happens


@pytest.mark.parametrize("seed", range(12))
def test_trouble_of_every_kind_at_once_loses_no_item(seed):
    async def outages(reactor: Reactor) -> None:
        store = parents_store(reactor)
        for n in range(50):
            await asyncio.sleep(3 + (seed * 7 + n * 3) % 11)
            store.is_away = True
            await asyncio.sleep(1 + (seed + n) % 9)
            store.is_away = False

    simulation = run_on(engine_of(faults=Faults(seed=seed)), 100, meanwhile=outages, fail_if=None)
    assert len(outcomes(simulation)) == 100


def test_a_child_that_dies_while_the_storage_is_away_is_tried_again_afterwards():
    async def outage(reactor: Reactor) -> None:
        store = parents_store(reactor)
        await asyncio.sleep(3)
        store.is_away = True
        await asyncio.sleep(200)
        store.is_away = False

    faults = Faults(fates=lambda s: Fate(crash_after=2.0) if s.key.endswith("/0/0") else None)
    simulation = run_on(engine_of(faults=faults), meanwhile=outage)
    assert simulation.report.items.succeeded == 40


def test_nothing_is_left_running_when_a_job_is_over():
    async def whole() -> set[str]:
        engine = engine_of(latencies=INSTANT)
        await simulate_on(engine, range(40), storage=next(_storage), **SMALL)
        await engine.shut_down()
        await asyncio.sleep(0)
        return {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()}

    assert run_virtually(whole()) == set()
