"""Whole jobs whose parent may ask little of Prefect, in virtual time: slower, and nothing else."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from orchestrator.core.machine import events as ev
from orchestrator.core.model import ItemOutcome, RunId, StopCause, StopMode, StopRecord
from orchestrator.engine.faults import Faults
from orchestrator.engine.memory import MemoryGateway, SimulatedEngine
from orchestrator.engine.pace import Need, _asking
from orchestrator.engine.virtual import run as run_virtually
from orchestrator.reactor import JobView, Reactor, boundaries
from orchestrator.reactor.boundaries import Boundary
from orchestrator.settings import Settings
from orchestrator.store import JobFolder
from orchestrator.testing import SimulatedBatches, Simulation, outcomes, simulate, simulate_on, take_over_on
from tests.cloud import most_within
from tests.reactor.test_trouble import engine_of, parents_store, run_on


class Counted(Faults):
    """Nothing goes wrong by itself; remembers when each request came."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def turns_away(self, now: float) -> bool:
        turned_away = super().turns_away(now)
        if not turned_away:
            self.asked.append(now)
        return turned_away


def job(faults: Counted, items: int = 120, **request: Any) -> Simulation:
    wanted = {"batch_size": 3, "max_in_flight": 8, **request}
    return simulate(lambda item: item, range(items), seconds_per_item=2.0, faults=faults, **wanted)


@pytest.mark.parametrize("budget", [20, 30, 60, 250])
def test_a_job_keeps_its_budget_in_every_minute_and_loses_nothing(budget: int) -> None:
    faults = Counted()
    simulation = job(faults, 60, max_requests_per_minute=budget)
    assert simulation.report.verdict == "completed"
    assert set(outcomes(simulation).values()) == {ItemOutcome.SUCCEEDED}
    assert most_within(faults.asked, 60.0) <= budget
    assert simulation.report.api_requests <= len(faults.asked) <= simulation.report.api_requests + 5  # its last page


def test_a_small_budget_makes_a_job_slower_and_a_large_one_does_not() -> None:
    free = job(Counted()).seconds
    assert job(Counted(), max_requests_per_minute=1000).seconds <= free * 1.2
    assert job(Counted(), max_requests_per_minute=60).seconds > free * 1.5


def test_the_budget_of_the_settings_holds_where_the_job_says_nothing() -> None:
    faults = Counted()
    simulation = job(faults, 60, settings=Settings(max_requests_per_minute=40))
    assert simulation.report.verdict == "completed"
    assert most_within(faults.asked, 60.0) <= 40


def test_a_large_window_does_not_make_the_kill_switch_blind() -> None:
    """Creating 100 children takes minutes here; what became of the first is read meanwhile."""

    def fail(item: Any) -> None:
        raise ValueError("no")

    simulation = simulate(
        fail, range(500), batch_size=5, max_in_flight=100, seconds_per_item=1.0, max_requests_per_minute=60,
        kill_switch="failed >= 10",
    )  # fmt: skip
    assert simulation.report.verdict == "tripped"
    assert simulation.seconds < 90
    assert simulation.report.items.not_started > 300


class Cancelled(SimulatedEngine):
    """Remembers when it was asked to cancel a run."""

    def cancel(self, run_id: RunId) -> Any:
        self.asked_at = [*getattr(self, "asked_at", []), self.now()]
        return super().cancel(run_id)


@pytest.mark.parametrize("budget", [20, 60])
@pytest.mark.parametrize("paused", [True, False], ids=["scheduled", "running"])
def test_a_stop_reaches_prefect_at_once_however_small_the_budget(budget: int, paused: bool) -> None:
    faults = Counted()
    engine = Cancelled(SimulatedBatches(lambda item: item, seconds_per_item=5.0), faults=faults)
    engine.paused = paused
    stopped: list[float] = []

    async def stop(reactor: Reactor) -> None:
        await asyncio.sleep(400)
        stopped.append(asyncio.get_running_loop().time())
        reactor.post(ev.StopRequested(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "enough", "a test")))

    simulation = run_on(engine, 4000, meanwhile=stop, max_in_flight=20, max_requests_per_minute=budget)
    assert simulation.report.verdict == "cancelled"
    # A run that was cancelled while it was Pending stays Cancelling here, as in Prefect: seen, and not over.
    assert all("last seen Cancelling" in note for note in simulation.report.notes)
    assert simulation.report.batches.unconfirmed <= 1
    if paused:  # those that run get a moment to end by themselves, and do
        assert engine.asked_at[0] - stopped[0] < 1.0
    assert most_within(faults.asked, 60.0) <= budget


class Strict(Counted):
    """From a moment on, for five minutes, Prefect answers 429 to all requests that are less urgent than these."""

    least: Need | None = None
    since = 0.0

    def turns_away(self, now: float) -> bool:
        if self.least is None or now > self.since + 300 or _asking.get()[0] <= self.least:
            return super().turns_away(now)
        return True


@pytest.mark.parametrize(
    ("when", "least"),
    # Not all but cancels meanwhile: nobody would know whom to cancel.
    [("before", least) for least in (Need.CREATE, Need.CONFIRM, Need.CANCEL)]
    + [("meanwhile", least) for least in (Need.CREATE, Need.CONFIRM)],
)
def test_a_stop_of_a_job_that_is_taken_over_reaches_prefect_at_once_however_much_is_turned_away(
    when: str, least: Need, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked of Prefect meanwhile, and the page that is begun, are not waited for."""
    faults = Strict()
    engine = Cancelled(SimulatedBatches(lambda item: item, seconds_per_item=5.0), faults=faults)
    engine.paused = True
    storage = f"memory://taken-over-{least}-{when}"
    record = StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "enough", "a test")

    def hook(boundary: Boundary) -> None:
        begins = Boundary.RESTORE_LISTED if when == "before" else Boundary.RESTORE_PLAYED
        if boundary is begins and faults.least is None:
            faults.least, faults.since = least, engine.now()

    async def whole() -> Simulation:
        wanted = {"batch_size": 5, "max_in_flight": 20, "job_id": "j", "storage": storage}
        first = asyncio.ensure_future(simulate_on(engine, range(400), **wanted))
        await asyncio.sleep(30)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        monkeypatch.setattr(boundaries, "hook", hook)
        folder = JobFolder(f"{storage}/j")
        if when == "before":
            folder.request_stop(record)
        else:
            asyncio.get_running_loop().call_later(2, folder.request_stop, record)
        try:
            return await take_over_on(engine, "j", storage)
        finally:
            await engine.shut_down()

    simulation = run_virtually(whole())
    assert simulation.report.verdict == "cancelled"
    assert engine.asked_at[0] - faults.since < (1.0 if when == "before" else 8.0)
    assert len(set(engine.asked_at)) <= 2, "all of them at once"


def test_trouble_with_the_folder_is_told_and_a_stop_in_it_is_seen_at_once_however_small_the_budget() -> None:
    moments: dict[str, float] = {}

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "The job is held up" in record.getMessage():
                moments.setdefault("told", asyncio.get_running_loop().time())

    async def trouble(reactor: Reactor) -> None:
        loop, folder = asyncio.get_running_loop(), reactor._job.folder
        store = parents_store(reactor)
        await asyncio.sleep(61)
        store.is_away, moments["away"] = True, loop.time()
        await asyncio.sleep(100)
        store.is_away = False
        folder.request_stop(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "enough", "a test"))
        moments["stop"] = loop.time()
        while reactor.state.stop is None:
            await asyncio.sleep(0.1)
        moments["stopped"] = loop.time()

    log, heard = logging.getLogger("orchestrator.testing"), Heard()
    log.addHandler(heard)
    try:
        run_on(engine_of(5.0), 4000, meanwhile=trouble, max_in_flight=8, max_requests_per_minute=20)
    finally:
        log.removeHandler(heard)
    assert moments["told"] - moments["away"] < 8
    assert moments["stopped"] - moments["stop"] < 8


def test_what_is_asked_for_people_alone_waits_behind_what_the_job_needs() -> None:
    needs: list[Need] = []

    class Listening(Counted):
        def is_out(self, method: str, now: float) -> bool:
            if method == "capacity" and now > 5:  # before, the job itself wants to know
                needs.append(_asking.get()[0])
            return super().is_out(method, now)

    engine = engine_of(faults=Listening())
    engine.paused = True

    async def go_on(reactor: Reactor) -> None:
        await asyncio.sleep(60)
        engine.paused = False

    simulation = run_on(engine, 20, meanwhile=go_on)
    assert simulation.report.verdict == "completed"
    assert set(needs) == {Need.SHOW}


def test_an_event_that_cannot_be_emitted_does_not_hold_a_job_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def emit(*args: Any) -> None:
        await asyncio.sleep(100_000)

    monkeypatch.setattr(MemoryGateway, "emit", emit)
    simulation = job(Counted(), 20)
    assert simulation.report.verdict == "completed"
    assert simulation.seconds < 120


def test_requests_that_prefect_turns_away_are_no_failure_no_trip_and_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults = Counted()
    faults.at_most(60)
    views: list[JobView] = []
    pages: list[str] = []

    def look(view: JobView) -> None:
        views.append(view)

    simulation = job(faults, 60, on_progress=look, kill_switch="crashed_attempts >= 1 or failed >= 1 or stalled > 300")
    pages = list(simulation.engine.pages.values())
    assert simulation.report.verdict == "completed"
    assert set(outcomes(simulation).values()) == {ItemOutcome.SUCCEEDED}
    assert faults.injected["request turned away"] > 0
    assert any("Prefect asks for fewer requests" in (view.waiting_for or "") for view in views)
    assert len(list(simulation.engine.runs())) == 20  # none was created twice
    assert pages
    assert "Completed" in pages[0]
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_the_page_says_that_prefect_asks_for_fewer_requests() -> None:
    faults = Counted()
    faults.at_most(25)
    engine = engine_of(2.0, faults=faults)
    seen: list[str] = []

    async def look(reactor: Reactor) -> None:
        while True:
            await asyncio.sleep(1)
            seen.extend(page for page in engine.pages.values() if "asks for fewer requests" in page)

    simulation = run_on(engine, 100, meanwhile=look)
    assert simulation.report.verdict == "completed"
    assert "**Waiting:** Prefect asks for fewer requests" in seen[0]


def test_readings_keep_their_distance_where_requests_are_few() -> None:
    faults = Counted()
    simulation = simulate(
        lambda item: item, range(10), batch_size=1, max_in_flight=10, seconds_per_item=1200.0, faults=faults,
        max_requests_per_minute=20,
    )  # fmt: skip
    assert simulation.report.verdict == "completed"
    assert most_within(faults.asked, 60.0) <= 20
    assert len(faults.asked) < 20 * simulation.seconds / 60 * 0.75  # some is left for whatever comes up
