"""Child runs that die, vanish or are cancelled by hand, on a real server and worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import orchestrate_sync
from orchestrator.stack import Stack
from tests.integration import job_flows
from tests.integration.job_support import MARKS, Watched, check, deploy, in_background, items, set_state
from tests.support import eventually

pytestmark = MARKS


def test_a_killed_child_is_replaced_and_only_its_rest_runs_again(
    work: str, job: Watched, tmp_path: Path, quick_stop: float
) -> None:
    what = [{"n": n} for n in range(3)] + [{"n": 3, "die_once": str(tmp_path / "died")}] + [{"n": n} for n in (4, 5)]
    report = orchestrate_sync(work, what, batch_size=6, **job.request)
    check(job, report, max_in_flight=1)
    assert (report.verdict.value, report.items.succeeded) == ("completed", 6)
    # Only the item in progress ran twice; what the first run had finished was taken over.
    assert job.started() == [0, 1, 2, 3, 3, 4, 5]
    assert [(run["name"], run["state_type"]) for run in job.children()] == [
        ("it-work 1/1", "CRASHED"), ("it-work 1/1 again 1", "COMPLETED"),
    ]  # fmt: skip
    assert [o.attempt for o in job.outcomes()] == [0, 0, 0, 1, 1, 1]


def test_a_child_that_always_dies_uses_its_attempts_up_and_its_item_is_unknown(
    work: str, job: Watched, tmp_path: Path, quick_stop: float
) -> None:
    # Dies at its first item in the first run, at its second in the only further one.
    what = [{"n": 0, "die_once": str(tmp_path / "a")}, {"n": 1, "die_once": str(tmp_path / "b")}, {"n": 2}]
    report = orchestrate_sync(
        work, what, batch_size=3, batch_retries=1, kill_switch=None, on_failure="return", **job.request
    )
    check(job, report)
    assert (report.verdict.value, report.failed_by_rule, report.batches.crashed) == ("completed", True, 1)
    assert job.outcome_words()[0] == "succeeded"
    assert job.outcome_words()[1] == "unknown"
    assert job.started() == [0, 0, 1]


@pytest.mark.slow
def test_an_item_that_kills_every_run_is_found_and_fails_alone(work: str, job: Watched, quick_stop: float) -> None:
    what = [{"n": n, "die": n == 2} for n in range(5)]
    report = orchestrate_sync(work, what, batch_size=5, kill_switch=None, on_failure="return", **job.request)
    assert (report.items.succeeded, report.items.failed, report.items.unknown) == (4, 1, 0)
    assert job.outcome_words() == ["succeeded", "succeeded", "failed", "succeeded", "succeeded"]
    assert [cluster.type for cluster in report.errors] == ["RunDiedError"]
    assert str(job.outcomes()[2].error_text).endswith("as earlier runs had: Process exited with status code: 137")
    assert [run["state_type"] for run in job.children()] == ["CRASHED", "CRASHED", "CRASHED", "COMPLETED"]


@pytest.mark.timeout(300)  # five child runs, one after the other
@pytest.mark.slow
def test_two_items_that_kill_every_run_fail_with_the_way_each_died_and_all_others_succeed(
    stack: Stack, job: Watched, quick_stop: float
) -> None:
    deployed = deploy(job_flows.wide, "wide", "default")
    what = [{"n": n, "die": {1: "segfault", 3: "signal"}.get(n)} for n in range(6)]
    report = orchestrate_sync(deployed, what, batch_size=6, kill_switch=None, on_failure="return", **job.request)
    check(job, report)
    assert (report.items.succeeded, report.items.failed) == (4, 2)
    said = {o.index: str(o.error_text).rpartition("had: ")[2] for o in job.outcomes() if o.outcome.value == "failed"}
    status = "Process exited with status code: "
    assert said == {1: status + "-11 (SIGSEGV)", 3: status + "-9 (SIGKILL)"}
    # Twice by chance, once for each that is found, and once to the end.
    assert [run["state_type"] for run in job.children()] == ["CRASHED"] * 4 + ["COMPLETED"]


def test_a_deleted_child_is_replaced(work: str, job: Watched, tmp_path: Path, stack: Stack, quick_stop: float) -> None:
    gate = tmp_path / "gate"
    what = [{"n": 0}, {"n": 1, "gate": str(gate)}, {"n": 2}]
    future = in_background(lambda: orchestrate_sync(work, what, batch_size=3, **job.request))
    job.wait_until_started(2)
    (child,) = job.children()
    stack.request("DELETE", f"/flow_runs/{child['id']}")
    eventually(lambda: job.children(), 30, "another child")
    gate.touch()
    report = future.result(timeout=60)
    check(job, report)
    assert report.items.succeeded == 3
    assert [run["name"] for run in job.children()] == ["it-work 1/1 again 1"]
    assert job.started().count(0) == 1, "what the deleted run had finished ran again"
    assert sorted(set(job.started())) == [0, 1, 2]


def test_a_child_cancelled_by_hand_is_not_tried_again(work: str, job: Watched, stack: Stack, quick_stop: float) -> None:
    what = [{"n": 0}, *({"n": n, "seconds": 1} for n in range(1, 60)), *items(2)]
    future = in_background(
        lambda: orchestrate_sync(
            work, what, batch_size=60, max_in_flight=2, kill_switch=None, on_failure="return", **job.request
        )
    )
    eventually(lambda: 1 in job.started(), 60, "the long batch")
    (child,) = [run for run in job.children() if run["name"] == "it-work 1/2"]
    set_state(stack, child["id"], "CANCELLING", "Cancelling")
    report = future.result(timeout=90)
    check(job, report)
    assert (report.verdict.value, report.failed_by_rule) == ("completed", True)
    assert (report.batches.completed, report.batches.cancelled) == (1, 1)
    assert len(job.children()) == 2
    # The item it was at is unknown or was finished; the rest of its items never started.
    assert report.items.unknown <= 1
    assert report.items.not_started >= 30
    assert any("batch 1 was cancelled" in note for note in report.notes), report.notes
