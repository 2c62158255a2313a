"""Jobs that stop early, on a real server and worker: what runs is settled or named in time, and nothing more starts."""

from __future__ import annotations

import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from orchestrator import Report, orchestrate_sync
from orchestrator.flows.parent import orchestrate_flow
from orchestrator.stack import Stack
from tests.integration.job_support import (
    MARKS,
    Watched,
    check,
    deploy_work,
    in_background,
    items,
    seconds,
)
from tests.support import eventually

pytestmark = MARKS


def check_nothing_after_stop(job: Watched, report: Report, interval: float) -> None:
    """No child was created after the stop, and no item began later than one interval after it."""
    stop, last = job.stopped_at(), job.last_start()
    created = [seconds(run["created"]) for run in job.children()]
    print(f"stop to last item start: {last - stop:+.1f} s; to last child created: {max(created) - stop:+.1f} s")
    assert last <= stop + interval + 0.5
    assert max(created) <= stop + 0.1


def deploy_late(name: str, pool: str, door: Path) -> str:
    """A deployment whose runs come up when the door opens; until then they are Pending."""
    command = f'sh -c "while [ ! -e {door} ]; do sleep 0.2; done; exec {sys.executable} -m prefect.engine"'
    return deploy_work(name, pool=pool, job_variables={"command": command})


def test_a_trip_settles_children_that_run_start_and_wait(
    stack: Stack, job: Watched, tmp_path: Path, quick_stop: float
) -> None:
    gate, door = tmp_path / "gate", tmp_path / "door"
    stack.create_pool("it-trip")
    worker = stack.start_worker(pool="it-trip", limit=3)
    quick, late = deploy_work("trip", pool="it-trip"), deploy_late("trip-late", "it-trip", door)
    failing = [{"n": 0, "g": "a", "gate": str(gate), "fail": "ValueError"}]
    failing += [{"n": n, "g": "a", "seconds": 1} for n in range(1, 40)]
    running = [{"n": n, "g": "b", "seconds": 1} for n in range(40, 80)]
    starting, waiting, never = {"n": 80, "g": "late"}, {"n": 81, "g": "c"}, {"n": 82, "g": "d"}
    try:
        future = in_background(
            lambda: orchestrate_sync(
                {"late": late, "*": quick},
                [*failing, *running, starting, waiting, never],
                group_by="g",
                batch_size=40,
                max_in_flight=4,
                kill_switch="failed >= 1",
                on_failure="return",
                **job.request,
            )
        )
        await_phases(job, future, "RUNNING", "RUNNING", "PENDING", "SCHEDULED")
        gate.touch()
        eventually(lambda: job.folder.read_stop() is not None, 30, "the stop")
        door.touch()
        report = future.result(timeout=90)
        print(f"stop to report: {time.time() - job.stopped_at():.1f} s; {report.batches}")
        assert time.time() - job.stopped_at() <= 30 + 3
        check(job, report, max_in_flight=4)
        check_nothing_after_stop(job, report, quick_stop)
        assert (report.verdict.value, report.kill_switch.clause, report.exit_code) == ("tripped", "failed >= 1", 1)
        assert report.kill_switch.tripped
        assert report.kill_switch.first_failure is not None
        assert report.kill_switch.first_failure.text == "item 0 is bad"
        batches = report.batches
        assert (batches.not_submitted, batches.cancelled + batches.unconfirmed) == (1, 4)
        # What never began is known not to have started, and the running ones ended within their grace.
        assert job.outcome_words()[80:] == ["not_started"] * 3
        assert report.items.unknown == 0
    finally:
        stack.stop_worker(worker)


def test_a_trip_names_the_children_that_nobody_can_end(
    stack: Stack, job: Watched, tmp_path: Path, quick_stop: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CANCEL_DEADLINE_SECONDS", "8")
    gate, door = tmp_path / "gate", tmp_path / "door"
    stack.create_pool("it-orphans")
    worker = stack.start_worker(pool="it-orphans")
    quick, late = deploy_work("orphans", pool="it-orphans"), deploy_late("orphans-late", "it-orphans", door)
    failing = [{"n": 0, "g": "a", "gate": str(gate), "fail": "ValueError"}]
    failing += [{"n": n, "g": "a", "seconds": 1} for n in range(1, 40)]
    future = in_background(
        lambda: orchestrate_sync(
            {"late": late, "*": quick},
            [*failing, {"n": 40, "g": "late"}],
            group_by="g",
            batch_size=40,
            max_in_flight=2,
            kill_switch="failed >= 1",
            on_failure="return",
            **job.request,
        )
    )
    try:
        await_phases(job, future, "RUNNING", "PENDING")
        stack.kill_worker(worker)
        gate.touch()
        report = future.result(timeout=90)
        took = time.time() - job.stopped_at()
        print(f"stop to report: {took:.1f} s; {report.batches}")
        assert took <= 8 + 3
        check(job, report, max_in_flight=2)
        check_nothing_after_stop(job, report, quick_stop)
        # The running child ended itself; the other is named.
        assert (report.batches.cancelled, report.batches.unconfirmed) == (1, 1)
        assert any(
            f"batch 2 was not seen to end, last seen Cancelling: run {job.children()[1]['id']}" in note
            for note in report.notes
        ), report.notes
        assert job.outcome_words()[40] == "not_started"
    finally:
        door.touch()
    # It comes up long after the end of the job, and starts nothing.
    with pytest.raises(AssertionError, match="did not hold"):
        eventually(lambda: 40 in job.started(), 6)


def await_phases(job: Watched, future: Future[Report], *phases: str) -> None:
    """Until the children are where the drill wants them, and the running ones have begun an item."""

    def reached() -> bool:
        assert not future.done(), future.result()
        types = [run["state_type"] for run in job.children()]
        return types == list(phases) and len(set(job.started())) >= phases.count("RUNNING")

    eventually(reached, 60, f"children {', '.join(phases)}")


def test_a_drain_lets_children_finish_and_starts_nothing_more(work: str, job: Watched, quick_stop: float) -> None:
    what = [{"n": 0, "fail": "ValueError"}, *({"n": n, "seconds": 2} for n in range(1, 6)), *items(4)]
    report = orchestrate_sync(
        work, what, batch_size=2, max_in_flight=2, kill_switch="failed >= 1", on_trip="drain",
        on_failure="return", **job.request,
    )  # fmt: skip
    check(job, report, max_in_flight=2)
    assert report.verdict.value == "tripped"
    submitted = len(job.children())
    assert 1 <= submitted <= 3
    assert max(seconds(run["created"]) for run in job.children()) <= job.stopped_at() + 0.1
    assert report.items.unknown == 0
    assert (report.items.succeeded, report.items.failed) == (submitted * 2 - 1, 1)
    assert report.batches.not_submitted == 5 - submitted
    assert all(run["state_type"] == "COMPLETED" for run in job.children())


async def test_enough_is_an_early_success(work: str, job: Watched, quick_stop: float) -> None:
    state = await orchestrate_flow(
        deployment=work, items={"kind": "inline", "items": items(12)}, batch_size=2, max_in_flight=1,
        parameters=job.parameters, advanced={**job.advanced, "enough_when": "succeeded >= 3"}, return_state=True,
    )  # fmt: skip
    assert (state.type.value, state.name) == ("COMPLETED", "Enough")
    report = Report.from_json(job.folder.read_report() or {})
    check(job, report, max_in_flight=1)
    assert (report.verdict.value, report.items.succeeded, report.exit_code) == ("enough", 4, 0)
    assert (report.batches.completed, report.batches.not_submitted) == (2, 4)
    assert state.message == report.headline


async def test_a_tripped_parent_ends_failed_and_says_why(work: str, job: Watched, quick_stop: float) -> None:
    what = items(1, fail="ValueError") + items(3)
    state = await orchestrate_flow(
        deployment=work, items={"kind": "inline", "items": what}, batch_size=1, max_in_flight=1,
        kill_switch={"max_failed": 0}, parameters=job.parameters, advanced=job.advanced, return_state=True,
    )  # fmt: skip
    assert (state.type.value, state.name) == ("FAILED", "Tripped")
    report = Report.from_json(job.folder.read_report() or {})
    check(job, report, max_in_flight=1)
    assert report.items.not_started == 3
    assert "failed > 0" in str(state.message) or "failed >= 1" in str(state.message)
