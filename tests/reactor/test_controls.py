"""What operators tell a running job: it holds, also when the parent was down meanwhile, and everybody sees it."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.core.model import Verdict
from orchestrator.engine.memory import MemoryGateway, SimulatedEngine
from orchestrator.engine.virtual import run as run_virtually
from orchestrator.flows.prepare import prepare
from orchestrator.flows.request import make_spec
from orchestrator.reactor import Reactor
from orchestrator.settings import Settings
from orchestrator.store import JobFolder, as_source
from orchestrator.store.controls import change
from orchestrator.testing import DEPLOYMENT, SimulatedBatches, Simulation, simulate_on

_storage = (f"memory://controls-{n}" for n in itertools.count())
Tell = Callable[[JobFolder], Any]


def fails_below(limit: int) -> Callable[[int], int]:
    def process(item: int) -> int:
        if item < limit:
            raise ValueError("too small")
        return item

    return process


def run_told(
    *, before: Tell | None = None, meanwhile: Callable[[Reactor, SimulatedEngine], Any] | None = None,
    process: Callable[[Any], Any] = lambda item: item, items: int = 40, **request: Any,
) -> Simulation:  # fmt: skip
    """A job of 5 items per batch, 0.5 s each, in virtual time.

    Args:
        before: Tells it something while it is staged and has no parent.
        meanwhile: Goes on beside the parent.
    """
    wanted = {"batch_size": 5, "max_in_flight": 4, "storage": next(_storage), "job_id": "told", **request}

    async def whole() -> Simulation:
        engine = SimulatedEngine(SimulatedBatches(process, seconds_per_item=0.5))
        if before is not None:
            spec = make_spec(deployment=DEPLOYMENT, **wanted)
            door = MemoryGateway(engine=engine)
            prepared = await prepare(spec, as_source(range(items)), door, settings=Settings())
            before(prepared.job.folder)
        begun: asyncio.Future[Reactor] = asyncio.get_running_loop().create_future()

        async def beside() -> None:
            if meanwhile is not None:
                await meanwhile(await begun, engine)

        try:
            async with asyncio.TaskGroup() as tasks:  # whatever fails beside the job ends it
                tasks.create_task(beside())
                job = tasks.create_task(simulate_on(engine, range(items), on_reactor=begun.set_result, **wanted))
            return job.result()
        finally:
            await engine.shut_down()

    return run_virtually(whole())


def page_of(engine: SimulatedEngine) -> str:
    (page,) = engine.pages.values()
    return str(page)


def test_a_window_that_was_changed_while_the_parent_was_down_holds():
    found = run_told(before=lambda folder: change(folder, max_in_flight=1, who="ada on box"))
    assert found.report.max_in_flight_seen == 1
    assert found.report.items.succeeded == 40
    (note,) = [note for note in found.report.notes if "max_in_flight" in note]
    assert note.startswith("max_in_flight changed from 4 to 1 by ada on box at ")
    assert note in page_of(found.engine).replace("\\", "")


def test_a_job_that_was_paused_while_its_parent_was_down_starts_nothing_until_it_is_resumed():
    pages: list[str] = []

    async def resume(reactor: Reactor, engine: SimulatedEngine) -> None:
        await asyncio.sleep(60)
        assert not list(engine.runs())
        pages.append(page_of(engine).replace("\\", ""))
        change(reactor._job.folder, paused=False, who="ben")

    found = run_told(before=lambda f: change(f, paused=True, who="ada", reason="the disk is full"), meanwhile=resume)
    assert found.report.items.succeeded == 40
    assert found.seconds > 60
    assert "**Paused** by ada at " in pages[0]
    assert "(the disk is full)" in pages[0]
    assert [note.split(" at ")[0] for note in found.report.notes] == ["paused by ada", "went on by ben"]


def test_a_new_kill_switch_is_asked_at_once_what_it_says_of_all_that_happened_before():
    async def tighten(reactor: Reactor, engine: SimulatedEngine) -> None:
        await asyncio.sleep(30)
        change(reactor._job.folder, paused=True, who="ada")
        await asyncio.sleep(30)
        assert reactor.state.tally.failed == 3  # nothing is in flight, no news will come
        assert not reactor.state.active
        change(reactor._job.folder, kill_switch="failed >= 3", who="ada")

    found = run_told(process=fails_below(3), meanwhile=tighten, items=400, max_in_flight=1, kill_switch=None)
    assert found.report.verdict is Verdict.TRIPPED
    assert (found.report.kill_switch.expression, found.report.kill_switch.clause) == ("failed >= 3", "failed >= 3")
    assert found.seconds < 70


def test_a_kill_switch_can_be_taken_away():
    found = run_told(
        before=lambda f: change(f, kill_switch="none", who="ada"), process=fails_below(3), kill_switch="failed >= 2"
    )
    assert (found.report.verdict, found.report.kill_switch.expression) == (Verdict.COMPLETED, None)
    assert any(note.startswith("kill switch taken away by ada at ") for note in found.report.notes)


@pytest.mark.parametrize(
    ("control", "said"),
    [
        (b"", "cannot be read"),
        (b"[1]", "cannot be read"),
        (b'{"format": 1}', "asks for nothing that is known"),
        (b'{"format": 99, "paused": true}', "cannot be read"),
        (b'{"format": 1, "max_in_flight": 0}', "max_in_flight must be 1 to 1000, not 0"),
        (b'{"format": 1, "max_in_flight": true}', "max_in_flight must be 1 to 1000"),
        (b'{"format": 1, "paused": "yes"}', "paused must be true or false"),
        (b'{"format": 1, "kill_switch": "failed >"}', "kill_switch is no expression"),
        (b'{"format": 1, "kill_switch": 3}', "kill_switch is no expression"),
    ],
)
def test_a_control_that_makes_no_sense_is_ignored_with_one_warning(
    control: bytes, said: str, caplog: pytest.LogCaptureFixture
):
    def tell(folder: JobFolder) -> None:
        folder.store.put("control/1.json", control)
        change(folder, max_in_flight=2, who="ada")

    with caplog.at_level(logging.WARNING):
        found = run_told(before=tell)
    (line,) = [r.getMessage() for r in caplog.records if "Control 1" in r.getMessage()]
    assert said in line
    assert found.report.items.succeeded == 40
    assert found.report.max_in_flight_seen == 2


def test_only_the_latest_changes_are_noted():
    def tell(folder: JobFolder) -> None:
        for n in range(1, 40):
            change(folder, max_in_flight=n, who="a program")

    found = run_told(before=tell)
    assert len([note for note in found.report.notes if "max_in_flight" in note]) == 20
    assert "to 39 by a program" in found.report.notes[19]
