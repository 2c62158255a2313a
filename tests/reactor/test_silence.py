"""Children whose process dies together with its worker, so that nobody ever says so: in virtual time."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from typing import Any

import pytest

from orchestrator.core.machine import events as ev
from orchestrator.core.model import Phase, StopCause, StopMode, StopRecord, Verdict
from orchestrator.engine.faults import Fate, Faults
from orchestrator.engine.memory import SimulatedEngine
from orchestrator.engine.virtual import run as run_virtually
from orchestrator.reactor import Reactor
from orchestrator.settings import Settings
from orchestrator.store import JobFolder
from orchestrator.testing import SimulatedBatches, outcomes, simulate_on, take_over_on
from tests.reactor.test_trouble import engine_of, parents_store, run_on

_storage = (f"memory://silence-{n}" for n in itertools.count())


def vanishing(after: float, *keys: str) -> Faults:
    """The runs with these ends of their keys vanish so many seconds after they began."""
    return Faults(fates=lambda s: Fate(vanish_after=after) if s.key.endswith(keys or ("/1/0",)) else None)


def test_a_batch_whose_child_vanished_is_tried_again_in_about_two_minutes(caplog: Any) -> None:
    caplog.set_level(logging.INFO, "orchestrator")
    engine = engine_of(faults=vanishing(1.0))
    simulation = run_on(engine)
    assert simulation.report.items.succeeded == 40
    assert simulation.seconds < 145
    assert set(outcomes(simulation).values()) == {"succeeded"}
    assert [run.name for run in engine.runs() if "again" in run.name] == ["simulated 2/8 again 1"]
    (said,) = [r.getMessage() for r in caplog.records if "no sign of life" in r.getMessage()]
    assert re.fullmatch(
        r"Batch 2 will be tried again \(attempt 2\): its process gave no sign of life for (9\d|10\d) s", said
    )
    assert any("was not seen to end" in note for note in simulation.report.notes)


def test_children_of_a_dead_machine_are_all_replaced_at_the_same_time() -> None:
    keys = tuple(f"/{batch}/0" for batch in range(4))
    simulation = run_on(engine_of(faults=vanishing(2.0, *keys)))
    assert simulation.report.items.succeeded == 40
    assert simulation.seconds < 180


def test_a_child_at_work_on_one_long_item_is_not_given_up() -> None:
    engine = SimulatedEngine(SimulatedBatches(lambda item: item, seconds_per_item=lambda n: 600.0 if n == 7 else 0.5))
    simulation = run_on(engine)
    assert simulation.report.items.succeeded == 40
    assert len(list(engine.runs())) == 8, "no batch was tried again"
    assert 600 < simulation.seconds < 660


@pytest.mark.parametrize("seconds", [60.0, 300.0])
def test_storage_that_is_away_gives_nobody_up(seconds: float) -> None:
    async def outage(reactor: Reactor) -> None:
        store = parents_store(reactor)
        await asyncio.sleep(20)
        store.is_away = True
        await asyncio.sleep(seconds)
        store.is_away = False

    engine = SimulatedEngine(SimulatedBatches(lambda item: item, seconds_per_item=200.0))
    simulation = run_on(engine, 20, meanwhile=outage)
    assert simulation.report.items.succeeded == 20
    assert len(list(engine.runs())) == 4


def test_an_outage_of_prefect_in_which_children_end_gives_nobody_up() -> None:
    faults = Faults()
    faults.outage(10.0, 310.0)
    engine = engine_of(seconds=10.0, faults=faults)
    simulation = run_on(engine, 40)
    assert simulation.report.items.succeeded == 40
    assert len(list(engine.runs())) == 8


def test_a_child_of_an_older_version_that_gives_no_signs_is_left_alone() -> None:
    class Old(SimulatedBatches):
        async def __call__(self, run: Any) -> Phase:
            write, JobFolder.write_alive = JobFolder.write_alive, lambda *_: None  # type: ignore[method-assign]
            try:
                return await super().__call__(run)
            finally:
                JobFolder.write_alive = write  # type: ignore[method-assign]

    engine = SimulatedEngine(Old(lambda item: item, seconds_per_item=400.0))
    simulation = run_on(engine, 5)
    assert simulation.report.items.succeeded == 5
    assert len(list(engine.runs())) == 1


def test_without_signs_of_life_a_vanished_child_holds_the_job_until_the_kill_switch_trips() -> None:
    simulation = run_on(engine_of(faults=vanishing(1.0)), settings=Settings(alive_seconds=0))
    assert simulation.report.verdict is Verdict.TRIPPED
    assert simulation.seconds > 3600


def test_a_draining_job_does_not_wait_for_a_child_that_vanished() -> None:
    async def drain(reactor: Reactor) -> None:
        await asyncio.sleep(8)
        reactor.post(ev.StopRequested(StopRecord(StopMode.DRAIN, StopCause.REQUESTED, "finish what runs", "test")))

    simulation = run_on(engine_of(faults=vanishing(1.0)), meanwhile=drain)
    assert simulation.report.verdict is Verdict.CANCELLED
    assert simulation.seconds < 180
    assert simulation.report.batches.crashed == 1


def test_signs_of_life_cost_no_request_to_prefect() -> None:
    def requests(alive: float) -> int:
        engine = SimulatedEngine(SimulatedBatches(lambda item: item, seconds_per_item=1000.0))
        return run_on(engine, 4, batch_size=1, settings=Settings(alive_seconds=alive)).report.api_requests

    assert requests(15) == requests(0)


def test_a_parent_that_takes_over_after_a_power_cut_replaces_the_children_that_went_with_it() -> None:
    engine = engine_of(faults=vanishing(1.0, *(f"/{batch}/0" for batch in range(4))))
    storage = next(_storage)

    async def whole() -> Any:
        asked = {"batch_size": 5, "max_in_flight": 4, "storage": storage, "job_id": "j"}
        first = asyncio.ensure_future(simulate_on(engine, range(40), **asked))
        await asyncio.sleep(10)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        try:
            return await take_over_on(engine, "j", storage)
        finally:
            await engine.shut_down()

    simulation = run_virtually(whole())
    assert simulation.report.items.succeeded == 40
    assert simulation.seconds < 180
