"""The parent through every race it knows, on a simulated Prefect in virtual time.

Each test is one row of the machine's table (or one promise of the design) as it happens to a whole job.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.core.machine import events as ev
from orchestrator.core.model import ItemOutcome, Phase, StopCause, StopMode, StopRecord, Verdict
from orchestrator.engine.faults import Fate, Faults, ProgressFault, SubmitFault, WaitFault
from orchestrator.engine.memory import SimulatedEngine
from orchestrator.engine.simulated import INSTANT, TYPICAL, Latencies
from orchestrator.engine.virtual import run as run_virtually
from orchestrator.errors import ConfigurationError, JobConflictError, JobNotFoundError, JobTakenOverError
from orchestrator.reactor import Reactor, boundaries
from orchestrator.reactor.boundaries import Boundary
from orchestrator.settings import Settings
from orchestrator.store import JobFolder
from orchestrator.testing import SimulatedBatches, Simulation, outcomes, simulate, simulate_on, take_over_on

SECONDS = 0.5


class Job:
    """A job on a simulated Prefect, with a count of how often each item started, and when."""

    def __init__(self, *, process: Callable[[Any], Any] = lambda item: item, capacity: int | None = None,
                 latencies: Latencies = TYPICAL, faults: Faults | None = None,
                 seconds: float | Callable[[Any], float] = SECONDS) -> None:  # fmt: skip
        self.starts: Counter[int] = Counter()
        self.last_start = 0.0
        children = SimulatedBatches(process, seconds_per_item=seconds, on_start=self._started)
        self.engine = SimulatedEngine(children, capacity=capacity, latencies=latencies, faults=faults)

    def _started(self, index: int, at: float) -> None:
        self.starts[index] += 1
        self.last_start = at

    def run(self, items: int = 40, *, meanwhile: Callable[[Job, Reactor], Any] | None = None, **request: Any):
        async def whole() -> Simulation:
            helpers: list[asyncio.Task[Any]] = []

            def begin(reactor: Reactor) -> None:
                if meanwhile is not None:
                    helpers.append(asyncio.ensure_future(meanwhile(self, reactor)))

            try:
                return await simulate_on(self.engine, range(items), on_reactor=begin, **request)
            finally:
                for helper in helpers:
                    helper.cancel()
                await asyncio.gather(*helpers, return_exceptions=True)
                await self.engine.shut_down()

        return run_virtually(whole())


def fate_of(batch: int, fate: Fate, *, attempt: int = 0) -> Faults:
    """That fate for one attempt of one batch."""
    return Faults(fates=lambda s: fate if s.key.endswith(f"/{batch}/{attempt}") else None)


def check(simulation: Simulation, window: int = 4) -> None:
    """What holds after every job."""
    items = simulation.report.items
    found = Counter(outcomes(simulation).values())
    assert items.total == items.succeeded + items.failed + items.unknown + items.not_started
    assert (items.succeeded, items.failed) == (found[ItemOutcome.SUCCEEDED], found[ItemOutcome.FAILED])
    assert simulation.report.max_in_flight_seen <= window


def run_small(job: Job, **request: Any) -> Simulation:
    simulation = job.run(**{"batch_size": 5, "max_in_flight": 4, **request})
    check(simulation)
    return simulation


# ------------------------------------------------------------------ creating


@pytest.mark.parametrize("fault", [SubmitFault.LOST_ANSWER, SubmitFault.LOST_REQUEST, SubmitFault.BUSY])
def test_a_creation_whose_answer_is_lost_makes_one_child_all_the_same(fault):
    faults = Faults()
    faults.next_submits(fault, None, fault, fault)
    job = Job(faults=faults)
    simulation = run_small(job)
    assert simulation.report.items.succeeded == 40
    assert len(list(job.engine.runs())) == 8
    assert set(job.starts.values()) == {1}


def test_while_prefect_is_away_nothing_is_lost_and_afterwards_the_job_goes_on():
    faults = Faults()
    faults.outage(3.0, 200.0)
    simulation = run_small(Job(faults=faults))
    assert simulation.report.items.succeeded == 40
    assert simulation.seconds > 197


def test_a_refused_creation_fails_the_job_and_says_why():
    faults = Faults()
    faults.next_submits(None, None, SubmitFault.REFUSED)
    simulation = run_small(Job(faults=faults))
    assert simulation.report.verdict is Verdict.FAILED
    assert "refused" in simulation.report.reason
    assert simulation.report.items.not_started >= 30


def test_a_stop_while_a_creation_is_of_unknown_outcome_finds_the_child_by_its_key_and_ends_it():
    faults = Faults()
    faults.next_submits(None, None, SubmitFault.LOST_ANSWER)
    job = Job(faults=faults, seconds=60.0)

    async def stop(job: Job, reactor: Reactor) -> None:
        while len(job.engine.created_at) < 3:
            await asyncio.sleep(0.01)
        reactor.post(ev.StopRequested(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "no more", "test")))

    simulation = run_small(job, meanwhile=stop)
    assert simulation.report.verdict is Verdict.CANCELLED
    assert all(run.phase.is_terminal for run in job.engine.runs())
    assert simulation.report.batches.unconfirmed == 0


# ------------------------------------------------------------------ waiting


@pytest.mark.parametrize("fault", list(WaitFault))
def test_no_lie_of_a_wait_is_believed(fault):
    faults = Faults()
    faults.next_waits(*[fault] * 30)
    simulation = run_small(Job(faults=faults))
    assert simulation.report.items.succeeded == 40
    assert simulation.seconds < 60


def test_without_any_wait_reading_the_records_is_enough():
    simulation = run_small(Job(), settings=Settings(max_waits=0))
    assert simulation.report.items.succeeded == 40


@pytest.mark.parametrize("fault", list(ProgressFault))
def test_lost_late_and_repeated_progress_changes_no_count(fault):
    faults = Faults()
    faults.next_progress(*[fault] * 50)
    job = Job(faults=faults, process=lambda item: 1 / (item % 4))
    simulation = run_small(job, fail_if=None)
    assert (simulation.report.items.succeeded, simulation.report.items.failed) == (30, 10)


# ------------------------------------------------------------------ losing children


@pytest.mark.parametrize("fate", [Fate(crash_after=1.2), Fate(delete_after=1.2)], ids=["crashed", "deleted"])
def test_a_lost_child_is_replaced_and_its_finished_items_are_not_run_again(fate):
    job = Job(faults=fate_of(2, fate))
    simulation = run_small(job)
    assert simulation.report.items.succeeded == 40
    assert simulation.report.batches.completed == 8
    rerun = [i for i, n in job.starts.items() if n > 1]
    # A deleted run's process lives on until it sees that it was given up: that long it may overlap, never count twice.
    assert len(rerun) <= 5
    assert set(range(10, 15)) >= set(rerun)


def test_a_batch_whose_every_child_dies_is_crashed_after_its_retries():
    job = Job(faults=Faults(fates=lambda s: Fate(crash_after=0.1) if "/2/" in s.key else None))
    simulation = run_small(job)
    assert simulation.report.batches.crashed == 1
    assert simulation.report.items.unknown == 5
    assert simulation.report.failed_by_rule
    assert sum("/2/" in (run.key or "") for run in job.engine.runs()) == 3


def test_a_child_said_to_have_crashed_that_lives_on_counts_no_item_twice():
    job = Job(faults=fate_of(1, Fate(false_crash_after=0.7)), seconds=3.0)
    simulation = run_small(job)
    assert simulation.report.items.succeeded == 40
    assert max(job.starts.values()) <= 2


def test_a_child_cancelled_by_somebody_is_not_tried_again_and_is_named():
    job = Job(faults=fate_of(3, Fate(cancel_after=1.0)), seconds=2.0)
    simulation = run_small(job)
    assert simulation.report.batches.cancelled == 1
    assert simulation.report.items.not_started + simulation.report.items.unknown > 0
    assert any("cancelled by someone else" in note for note in simulation.report.notes)
    assert sum("/3/" in (run.key or "") for run in job.engine.runs()) == 1


def test_a_child_stuck_in_pending_is_replaced_after_the_start_timeout():
    job = Job(faults=fate_of(0, Fate(stuck_pending=True)))
    simulation = run_small(job, start_timeout_seconds=30)
    assert simulation.report.items.succeeded == 40
    # The five minutes that Prefect takes to end what nobody cancels are not waited for.
    assert simulation.seconds < 30 + Settings().cancel_deadline_seconds + 60 < TYPICAL.cancelling_timeout


def test_a_child_is_not_given_up_for_what_it_may_have_left_while_prefect_was_away():
    faults = Faults()
    faults.outage(5.0, 120.0)  # they were seen Pending when the server goes, and are Running when it is back
    job = Job(faults=faults, seconds=30.0, latencies=Latencies(start=10.0))
    simulation = run_small(job, start_timeout_seconds=20)
    assert simulation.report.items.succeeded == 40
    assert len(list(job.engine.runs())) == 8


def test_a_child_that_runs_too_long_is_replaced():
    slow = {"first": True}

    def seconds(item: int) -> float:
        if item == 7 and slow.pop("first", False):
            return 10_000.0
        return SECONDS

    job = Job(seconds=seconds)
    simulation = run_small(job, batch_timeout_seconds=60)
    assert simulation.report.items.succeeded == 40
    assert job.starts[7] == 2


def test_children_that_wait_for_capacity_spend_no_attempt():
    job = Job(capacity=1)
    simulation = run_small(job, start_timeout_seconds=5)
    assert simulation.report.items.succeeded == 40
    assert len(list(job.engine.runs())) == 8


def test_a_paused_pool_holds_the_job_up_and_the_page_says_so():
    job = Job()
    job.engine.paused = True
    pages: list[str] = []

    async def resume(job: Job, reactor: Reactor) -> None:
        await asyncio.sleep(120)
        pages.extend(job.engine.pages.values())
        job.engine.paused = False

    simulation = run_small(job, meanwhile=resume)
    assert simulation.report.items.succeeded == 40
    assert "paused" in pages[-1]


# ------------------------------------------------------------------ stopping


def test_a_trip_submits_nothing_more_and_every_item_is_accounted_for():
    job = Job(process=lambda item: 1 / 0)
    simulation = run_small(job, items=200, kill_switch="failed >= 7")
    report = simulation.report
    assert report.verdict is Verdict.TRIPPED
    assert report.kill_switch.clause == "failed >= 7"
    assert report.kill_switch.at["failed"] >= 7
    assert report.kill_switch.first_failure.type == "ZeroDivisionError"
    assert report.batches.not_submitted > 0
    assert all(run.phase.is_terminal for run in job.engine.runs())


def test_the_last_batch_can_trip_the_kill_switch():
    simulation = run_small(Job(process=lambda item: 1 / (39 - item)), kill_switch="failed >= 1")
    assert simulation.report.verdict is Verdict.TRIPPED
    assert simulation.report.items.succeeded == 39


def test_failures_inside_running_batches_trip_it_long_before_they_end():
    simulation = run_small(Job(process=lambda item: 1 / 0), items=4000, batch_size=1000, kill_switch="failed >= 30")
    assert simulation.report.verdict is Verdict.TRIPPED
    assert simulation.report.items.failed < 200


def test_no_item_starts_later_than_one_look_after_the_stop():
    job = Job(seconds=0.2)
    stopped_at: list[float] = []

    async def stop(job: Job, reactor: Reactor) -> None:
        await asyncio.sleep(10)
        stopped_at.append(asyncio.get_running_loop().time())
        reactor.post(ev.StopRequested(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "no more", "test")))

    run_small(job, items=2000, batch_size=500, meanwhile=stop)
    assert job.last_start <= stopped_at[0] + 2.0 + 0.2
    assert job.engine.created_after(stopped_at[0]) == 0


def test_a_child_that_began_to_run_unseen_gets_its_items_grace_all_the_same():
    job = Job(seconds=0.2)

    async def stop(job: Job, reactor: Reactor) -> None:
        while not job.starts:
            await asyncio.sleep(0.01)
        assert reactor.state.batches[0].phase is not Phase.RUNNING, "the parent is not to know yet"
        reactor.post(ev.StopRequested(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "no more", "test")))

    simulation = run_small(job, items=100, batch_size=100, max_in_flight=1, meanwhile=stop)
    (run,) = job.engine.runs()
    assert run.state_name == "Stopped", "it ended by itself, after its item, and was not ended by Prefect"
    assert simulation.report.items.unknown == 0


def test_drain_lets_children_finish_and_starts_nothing_more():
    job = Job()

    async def stop(job: Job, reactor: Reactor) -> None:
        await asyncio.sleep(3)
        reactor.post(ev.StopRequested(StopRecord(StopMode.DRAIN, StopCause.REQUESTED, "finish what you have", "test")))

    simulation = run_small(job, items=200, batch_size=20, meanwhile=stop)
    report = simulation.report
    assert report.verdict is Verdict.CANCELLED
    assert (report.batches.completed, report.batches.cancelled) == (4, 0)
    assert report.items.not_started == 120


def test_a_drain_can_become_a_cancel_and_the_first_cause_stands():
    job = Job(seconds=5.0)

    async def stop(job: Job, reactor: Reactor) -> None:
        await asyncio.sleep(6)
        reactor.post(ev.StopRequested(StopRecord(StopMode.DRAIN, StopCause.REQUESTED, "slowly", "test")))
        await asyncio.sleep(6)
        reactor.post(ev.StopRequested(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "now", "test")))

    simulation = run_small(job, items=400, batch_size=100, meanwhile=stop)
    assert simulation.report.reason == "slowly"
    assert simulation.seconds < 60


def test_enough_ends_the_job_early_as_a_success():
    simulation = run_small(Job(), items=400, enough_when="succeeded >= 20")
    assert simulation.report.verdict is Verdict.ENOUGH
    assert simulation.report.exit_code == 0
    assert 20 <= simulation.report.items.succeeded < 100


def test_a_child_that_hears_no_cancel_is_named_unconfirmed_at_the_deadline():
    job = Job(faults=Faults(fates=lambda s: Fate(deaf=True) if "/1/" in s.key else None),
              seconds=lambda item: 10_000.0 if item == 5 else SECONDS)  # fmt: skip

    async def stop(job: Job, reactor: Reactor) -> None:
        await asyncio.sleep(8)
        reactor.post(ev.StopRequested(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "no more", "test")))

    simulation = run_small(job, meanwhile=stop)
    assert simulation.report.batches.unconfirmed == 1
    assert simulation.seconds <= 8 + 30 + 5


def test_a_cancelled_child_that_comes_back_to_life_runs_no_item():
    latencies = Latencies(start=20.0)
    job = Job(faults=Faults(fates=lambda s: Fate(resurrect_after=3.0)), latencies=latencies)

    async def stop(job: Job, reactor: Reactor) -> None:
        while sum(run.phase is Phase.PENDING for run in job.engine.runs()) < 4:
            await asyncio.sleep(0.1)
        reactor.post(ev.StopRequested(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "no more", "test")))
        await asyncio.sleep(1000)

    simulation = run_small(job, meanwhile=stop)
    assert simulation.report.verdict is Verdict.CANCELLED
    assert not job.starts


def test_a_stop_written_into_the_folder_is_obeyed():
    job = Job()

    async def stop(job: Job, reactor: Reactor) -> None:
        await asyncio.sleep(5)
        reactor._job.folder.request_stop(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "from the shell", "cli"))

    simulation = run_small(job, items=400, meanwhile=stop)
    assert simulation.report.verdict is Verdict.CANCELLED
    assert simulation.report.reason == "from the shell"


# ------------------------------------------------------------------ controls


def test_the_window_can_be_changed_while_the_job_runs():
    job = Job()

    async def widen(job: Job, reactor: Reactor) -> None:
        await asyncio.sleep(5)
        reactor._job.folder.write_control({"max_in_flight": 9})

    simulation = job.run(400, batch_size=5, max_in_flight=2, meanwhile=widen)
    assert simulation.report.max_in_flight_seen == 9


def test_a_paused_job_submits_nothing_until_it_goes_on():
    job = Job()

    async def pause(job: Job, reactor: Reactor) -> None:
        await asyncio.sleep(1)
        reactor._job.folder.write_control({"paused": True})
        await asyncio.sleep(300)
        reactor._job.folder.write_control({"paused": False})

    simulation = run_small(job, items=100, meanwhile=pause)
    assert simulation.report.items.succeeded == 100
    assert simulation.seconds > 300


# ------------------------------------------------------------------ parents


def interrupted_then_resumed(after: float, *, faults: Faults | None = None, **request: Any) -> tuple[Job, Simulation]:
    """A job whose parent dies after so many seconds, taken over by a second one."""
    job = Job(faults=faults)
    storage = f"memory://resume-{after}-{id(job)}"
    wanted = {"batch_size": 5, "max_in_flight": 4, "job_id": "j", "storage": storage, **request}

    async def whole() -> Simulation:
        first = asyncio.ensure_future(simulate_on(job.engine, range(60), **wanted))
        await asyncio.sleep(after)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        job.engine.faults.still()
        try:
            return await take_over_on(job.engine, "j", storage)
        finally:
            await job.engine.shut_down()

    return job, run_virtually(whole())


@pytest.mark.parametrize("after", [0.05, 0.4, 1.0, 2.0, 3.1, 4.7, 6.0, 8.5, 11.0])
def test_a_parent_that_dies_at_any_moment_loses_nothing(after):
    job, simulation = interrupted_then_resumed(after)
    check(simulation)
    assert simulation.report.items.succeeded == 60
    assert len(list(job.engine.runs())) == 12
    assert set(job.starts.values()) == {1}


def test_a_resumed_jobs_seconds_begin_with_its_creation():
    job = Job()
    wanted = {"batch_size": 5, "job_id": "j", "storage": f"memory://aged-{id(job)}"}

    async def whole() -> Simulation:
        first = asyncio.ensure_future(simulate_on(job.engine, range(60), **wanted))
        await asyncio.sleep(2)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        folder = JobFolder(f"{wanted['storage']}/j")
        an_hour_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
        record = folder.read_job().to_json() | {"created": an_hour_ago.isoformat(timespec="seconds")}
        folder.store.put("job.json", json.dumps(record).encode())
        return await take_over_on(job.engine, "j", wanted["storage"])

    simulation = run_virtually(whole())
    assert 3600 <= simulation.report.seconds <= 3660 + simulation.seconds


def test_what_a_dead_parent_had_given_up_stays_given_up():
    faults = fate_of(1, Fate(crash_after=0.2))
    _, simulation = interrupted_then_resumed(7.0, faults=faults)
    check(simulation)
    assert simulation.report.items.succeeded == 60


@pytest.mark.parametrize("after", [100.0, 304.0, 306.0, 308.0, 310.0, 312.0, 314.0])
def test_a_child_that_a_dead_parent_gave_up_was_not_cancelled_by_somebody_else(after):
    """It was stuck in Pending and cancelled; the parent died before that was over, or while the next attempt ran."""
    faults = fate_of(1, Fate(stuck_pending=True))
    job, simulation = interrupted_then_resumed(after, faults=faults, start_timeout_seconds=5)
    check(simulation)
    assert simulation.report.items.succeeded == 60
    assert sum("/1/" in (run.key or "") for run in job.engine.runs()) == 2


class Died(Exception):
    """Ends a parent at a boundary."""


def dies_at(boundary: Boundary, nth: int, monkeypatch: pytest.MonkeyPatch, job: Job, **request: Any) -> Simulation:
    """A job whose parent dies at that pass of the boundary, taken over by a second one."""
    passes = 0

    def hook(at: Boundary) -> None:
        nonlocal passes
        passes += at is boundary
        if at is boundary and passes == nth:
            raise Died

    storage = f"memory://dies-{boundary.name.lower()}-{nth}-{id(job)}"
    wanted = {"batch_size": 5, "max_in_flight": 4, "job_id": "j", "storage": storage, **request}

    async def whole() -> Simulation:
        with monkeypatch.context() as patch:
            patch.setattr(boundaries, "hook", hook)
            with pytest.raises(Died):
                await simulate_on(job.engine, range(20), **wanted)
        job.engine.faults.still()
        try:
            return await take_over_on(job.engine, "j", storage)
        finally:
            await job.engine.shut_down()

    return run_virtually(whole())


@pytest.mark.parametrize(
    "boundary",
    [Boundary.RECALL_WRITTEN, Boundary.CANCEL_SENT, Boundary.END_READ, Boundary.ATTEMPT_CLOSED, Boundary.ATTEMPT_LOST],
)
def test_a_child_that_ran_too_long_for_a_dead_parent_is_tried_again_by_the_next(boundary, monkeypatch):
    slow = {"first": True}

    def seconds(item: int) -> float:
        return 10_000.0 if item == 0 and slow.pop("first", False) else 0.1

    job = Job(seconds=seconds)
    nth = {Boundary.END_READ: 4, Boundary.ATTEMPT_CLOSED: 4}.get(boundary, 1)
    simulation = dies_at(boundary, nth, monkeypatch, job, batch_timeout_seconds=60)
    check(simulation)
    assert (simulation.report.items.succeeded, simulation.report.batches.cancelled) == (20, 0)
    assert not simulation.report.notes


@pytest.mark.parametrize("boundary", [Boundary.END_READ, Boundary.ATTEMPT_CLOSED])
def test_a_child_that_somebody_cancelled_stays_cancelled_when_the_parent_dies_then(boundary, monkeypatch):
    job = Job(seconds=lambda item: 0.1 if item > 4 else 10.0, faults=fate_of(0, Fate(cancel_after=15.0)))
    simulation = dies_at(boundary, 4, monkeypatch, job)
    check(simulation)
    assert (simulation.report.batches.cancelled, simulation.report.batches.completed) == (1, 3)
    assert "was cancelled by someone else" in simulation.report.notes[0]


def test_a_stop_that_a_dead_parent_wrote_is_carried_out_by_the_next():
    job = Job(process=lambda item: 1 / 0)
    storage = f"memory://stopped-{id(job)}"
    wanted = {"batch_size": 20, "max_in_flight": 2, "job_id": "j", "storage": storage, "kill_switch": "failed >= 3"}

    async def whole() -> Simulation:
        reactors: list[Reactor] = []
        first = asyncio.ensure_future(simulate_on(job.engine, range(200), on_reactor=reactors.append, **wanted))
        while not reactors or reactors[0].state.stop is None:
            await asyncio.sleep(0.05)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return await take_over_on(job.engine, "j", storage)

    simulation = run_virtually(whole())
    check(simulation)
    assert simulation.report.verdict is Verdict.TRIPPED
    assert job.engine.created_after(30.0) == 0


def test_the_older_of_two_parents_stands_down(caplog):
    job = Job()
    storage = f"memory://two-{id(job)}"
    wanted = {"batch_size": 5, "max_in_flight": 4, "job_id": "j", "storage": storage}

    async def whole() -> tuple[BaseException, Simulation]:
        first = asyncio.ensure_future(simulate_on(job.engine, range(60), **wanted))
        await asyncio.sleep(3)
        second = await take_over_on(job.engine, "j", storage)
        (ended,) = await asyncio.gather(first, return_exceptions=True)
        return ended, second

    with caplog.at_level(logging.WARNING, "orchestrator.testing"):
        ended, simulation = run_virtually(whole())
    assert isinstance(ended, JobTakenOverError)
    assert "job 'j' was taken over by process" in str(ended)
    assert [r.getMessage().lower() for r in caplog.records if "taken over" in r.getMessage()] == [str(ended).lower()]
    check(simulation)
    assert simulation.report.items.succeeded == 60
    assert set(job.starts.values()) == {1}


def test_a_finished_job_gives_its_old_report_and_another_spec_is_refused():
    job = Job(latencies=INSTANT)
    wanted = {"batch_size": 5, "job_id": "j", "storage": f"memory://again-{id(job)}"}

    async def whole() -> tuple[Simulation, Simulation]:
        first = await simulate_on(job.engine, range(20), **wanted)
        again = await simulate_on(job.engine, range(20), **wanted)
        with pytest.raises(JobConflictError) as refused:
            await simulate_on(job.engine, range(20), **{**wanted, "batch_size": 6})
        assert refused.value.differences == {"batch_size": (5, 6)}
        with pytest.raises(JobConflictError, match="items"):
            await simulate_on(job.engine, range(21), **wanted)
        with pytest.raises(JobNotFoundError):
            await take_over_on(job.engine, "other", wanted["storage"])
        return first, again

    first, again = run_virtually(whole())
    assert again.report == first.report
    assert len(list(job.engine.runs())) == 4


def test_a_tripped_job_is_not_resumed_but_points_to_its_items():
    job = Job(process=lambda item: 1 / 0)
    wanted = {"batch_size": 5, "job_id": "j", "storage": f"memory://tripped-{id(job)}", "kill_switch": "failed >= 1"}

    async def whole() -> None:
        await simulate_on(job.engine, range(20), **wanted)
        with pytest.raises(JobConflictError, match=r"job:j\?outcome="):
            await simulate_on(job.engine, range(20), **wanted)

    run_virtually(whole())


def test_the_items_of_a_job_can_be_the_source_of_the_next():
    broken = {3, 17}
    job = Job(process=lambda item: 1 / 0 if item in broken else item * 10)
    storage = f"memory://chain-{id(job)}"

    async def whole() -> tuple[Simulation, Simulation, Simulation]:
        first = await simulate_on(job.engine, range(20), job_id="a", storage=storage, batch_size=5)
        broken.clear()
        second = await simulate_on(job.engine, "job:a?outcome=failed", job_id="b", storage=storage)
        third = await simulate_on(job.engine, "results:a", job_id="c", storage=storage, batch_size=5)
        return first, second, third

    first, second, third = run_virtually(whole())
    assert first.report.failed_by_rule
    assert [(r.key, r.result) for r in second.folder.outcomes()] == [("3", 30), ("17", 170)]
    assert third.report.items.total == 18


# ------------------------------------------------------------------ nothing at all


def test_an_empty_collection_is_a_completed_job_of_zero_items():
    report = simulate(lambda item: item, []).report
    assert (report.verdict, report.items.total, report.exit_code) == (Verdict.COMPLETED, 0, 0)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"max_in_flight": 1001}, "max_in_flight"),
        ({"kill_switch": "failed >"}, "kill_switch"),
        ({"enough_when": "succeded > 1"}, "enough_when"),
        ({"fail_if": "failed + 1"}, "fail_if"),
        ({"deployment": "simulated/batchs"}, "deployment"),
        ({"deployment": "nonsense"}, "deployment"),
        ({"job_id": "../x"}, "job_id"),
        ({"pass_items_as": "lists"}, "pass_items_as"),
        ({"on_trip": "explode"}, "on_trip"),
        ({"max_weight": 3}, "max_weight"),
        ({"parameters": {"a": {"__prefect_kind": "jinja"}}}, "parameters"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_request_names_its_field_and_creates_nothing(request_, field):
    with pytest.raises(ConfigurationError) as refused:
        simulate(lambda item: item, range(3), **request_)
    assert refused.value.field == field
    assert str(refused.value).startswith(field)


def test_another_content_of_the_same_file_is_another_request(tmp_path):
    file = tmp_path / "items.txt"
    job = Job(latencies=INSTANT)
    wanted = {"job_id": "j", "storage": f"memory://file-{id(job)}"}

    async def whole() -> None:
        file.write_text("a\nb\n")
        await simulate_on(job.engine, str(file), **wanted)
        again = await simulate_on(job.engine, str(file), **wanted)
        assert again.report.items.total == 2
        file.write_text("c\nd\ne\n")
        with pytest.raises(JobConflictError, match="items"):
            await simulate_on(job.engine, str(file), **wanted)

    run_virtually(whole())


def test_a_damaged_report_is_written_anew():
    job = Job(latencies=INSTANT)
    wanted = {"job_id": "j", "storage": f"memory://damaged-{id(job)}"}

    async def whole() -> Simulation:
        first = await simulate_on(job.engine, range(10), **wanted)
        first.folder.store.put("report.json", b'{"format": 1}')
        again = await take_over_on(job.engine, "j", wanted["storage"])
        first.folder.store.put("report.json", b'{"format":')
        assert (await take_over_on(job.engine, "j", wanted["storage"])).report.items == again.report.items
        return again

    assert run_virtually(whole()).report.items.succeeded == 10
