"""Recording a parent's events: complete when the storage is there, and never at the job's cost when it is not."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.core.machine import events as ev
from orchestrator.core.machine.replay import Replay
from orchestrator.core.machine.wire import Recorded
from orchestrator.core.model import Phase
from orchestrator.engine.faults import Faults
from orchestrator.engine.memory import MemoryGateway, SimulatedEngine
from orchestrator.engine.virtual import run as run_virtually
from orchestrator.errors import InvalidTransitionError, StoreUnavailableError
from orchestrator.flows.prepare import Prepared
from orchestrator.reactor import Reactor, Recorder, recording
from orchestrator.reactor.perform import Io
from orchestrator.settings import Settings
from orchestrator.store import layout
from orchestrator.store.journal import Gap, open_journal, parents
from orchestrator.testing import SimulatedBatches, Simulation, simulate
from tests.unit.reactor.jobs import prepared

logger = logging.getLogger(__name__)


def recorded(simulation: Simulation, parent: int = 1) -> list[Recorded | Gap]:
    store = simulation.folder.store
    return list(open_journal(store, parents(store)[parent]))


class Trouble:
    """A job folder whose recorded events meet trouble; everything else is stored."""

    def __init__(self, store: Any, meet: Callable[[str, bytes], None], *, appends: bool = True) -> None:
        self._store, self._meet, self.appends = store, meet, appends
        self.writes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def append(self, name: str, data: bytes) -> None:
        self._write(self._store.append, name, data)

    def put(self, name: str, data: bytes) -> None:
        self._write(self._store.put, name, data)

    def _write(self, write: Callable[[str, bytes], None], name: str, data: bytes) -> None:
        if name.startswith(layout.EVENTS):
            self.writes += 1
            self._meet(name, data)
        write(name, data)


def run(job: Prepared, *, seconds: float = 1.0) -> Simulation:
    """The job to its end in virtual time, its folder as it is."""

    async def whole() -> Simulation:
        engine = SimulatedEngine(SimulatedBatches(lambda item: item, seconds_per_item=seconds))
        reactor = Reactor(
            job.job, MemoryGateway(engine=engine), log=logger, io=Io(inline=True), recorder=Recorder(job.job)
        )
        return Simulation(await reactor.run(), job.job.folder, engine, 0.0)

    return run_virtually(whole())


def in_trouble(meet: Callable[[str, bytes], None], *, appends: bool = True, **request: Any) -> tuple[Prepared, Trouble]:
    job = prepared(**request)
    trouble = Trouble(job.job.folder.store, meet, appends=appends)
    job.job.folder.store = trouble  # type: ignore[assignment]
    return job, trouble


@pytest.mark.parametrize("seed", range(6))
def test_what_is_recorded_is_what_was_decided(seed: int) -> None:
    faults = Faults(seed=seed)
    simulation = simulate(
        lambda n: 1 // (n % 9), range(120), batch_size=6, max_in_flight=5, faults=faults, kill_switch="failed >= 12"
    )
    events = recorded(simulation)
    machine = Replay(open_journal(simulation.folder.store, parents(simulation.folder.store)[1]).header.setup)
    for event in events:
        assert isinstance(event, Recorded)
        machine.play(event)
    assert machine.difference is None
    assert machine.state.verdict is simulation.report.verdict
    assert [e.number for e in events if isinstance(e, Recorded)] == list(range(1, len(events) + 1))


def test_the_report_is_published_after_the_last_event_was_recorded() -> None:
    job, _ = in_trouble(lambda name, data: None)
    order: list[str] = []
    job.job.folder.write_report = lambda report: order.append(  # type: ignore[method-assign]
        "report" if b'["F",' in b"".join(job.job.folder.store.get(n) or b"" for n in parents(trouble)[1]) else "early"
    )
    trouble = job.job.folder.store
    run(job)
    assert order == ["report"]


def test_a_job_that_is_told_not_to_record_leaves_no_events() -> None:
    simulation = simulate(lambda n: n, range(10), settings=Settings(record_events=False))
    assert simulation.report.ok
    assert parents(simulation.folder.store) == {}


def test_a_storage_that_takes_no_events_costs_the_job_nothing_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def away(name: str, data: bytes) -> None:
        raise StoreUnavailableError("away")

    job, trouble = in_trouble(away, items=60)
    with caplog.at_level(logging.DEBUG, "orchestrator.reactor.recording"):
        assert run(job).report.ok
    assert trouble.writes > 3
    assert [r.levelname for r in caplog.records if "recorded" in r.message] == ["DEBUG"]


def test_events_of_a_time_without_storage_are_written_later() -> None:
    times = iter([True] * 3)

    def away_at_first(name: str, data: bytes) -> None:
        if next(times, False):
            raise StoreUnavailableError("away")

    job, _ = in_trouble(away_at_first, items=60)
    events = recorded(run(job))
    assert [e.number for e in events if isinstance(e, Recorded)] == list(range(1, len(events) + 1))


def test_no_more_events_are_kept_than_memory_allows_and_the_rest_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MOST_WAITING", 10)
    times = iter([True] * 6)

    def away_for_long(name: str, data: bytes) -> None:
        if next(times, False):
            raise StoreUnavailableError("away")

    job, _ = in_trouble(away_for_long, items=60)
    simulation = run(job, seconds=3.0)
    assert simulation.report.ok
    events = recorded(simulation)
    assert [e for e in events[:10] if isinstance(e, Gap)] == []
    gap = events[10]
    assert isinstance(gap, Gap)
    assert gap.lost > 10
    assert not isinstance(events[-1], Gap)


@pytest.mark.parametrize("surprise", [OSError("io"), ValueError("odd"), MemoryError()])
def test_whatever_recording_raises_the_job_goes_on(surprise: Exception) -> None:
    def broken(name: str, data: bytes) -> None:
        raise surprise

    job, _ = in_trouble(broken)
    assert run(job).report.ok


def test_a_storage_that_hangs_holds_the_report_up_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "LAST_SECONDS", 0.2)

    def hangs(name: str, data: bytes) -> None:
        time.sleep(1.5)

    job, _ = in_trouble(hangs)

    async def whole() -> float:
        recorder, io = Recorder(job.job), Io(threads=2)
        recorder.start(io)
        recorder.take(0.0, ev.Started(), [])
        began = asyncio.get_running_loop().time()
        await recorder.close()
        took = asyncio.get_running_loop().time() - began
        recorder.take(1.0, ev.Ticked(), [])  # after the end: not recorded, and no error
        await recorder.close()
        io.close()
        return took

    assert asyncio.run(whole()) < 1.4


def test_where_each_write_makes_an_object_a_long_job_makes_some_hundred_of_them() -> None:
    job, trouble = in_trouble(lambda name, data: None, appends=False, items=20)
    simulation = run(job, seconds=120.0)  # five items in turn: ten minutes
    assert simulation.report.ok
    assert 50 < trouble.writes < 200
    assert not any(isinstance(e, Gap) for e in recorded(simulation))


def test_an_event_that_the_machine_refuses_is_recorded_as_refused() -> None:
    job = prepared().job

    async def whole() -> None:
        engine = SimulatedEngine(SimulatedBatches(lambda item: item))
        reactor = Reactor(job, MemoryGateway(engine=engine), log=logger, io=Io(inline=True), recorder=Recorder(job))
        reactor.post(ev.RunSeen(3, 5, Phase.RUNNING))
        await reactor.run()

    with pytest.raises(InvalidTransitionError):
        run_virtually(whole())
    (last,) = [e for e in open_journal(job.folder.store, parents(job.folder.store)[1]) if isinstance(e, Recorded)]
    assert (last.event, last.commands) == (ev.RunSeen(3, 5, Phase.RUNNING), None)
