"""Parents that are cancelled, killed, retried or started again, on a real server and worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from orchestrator import Report, orchestrate_sync, resume_sync
from orchestrator.errors import JobConflictError
from orchestrator.flows.parent import orchestrate_flow
from orchestrator.stack import Stack
from tests.integration.job_support import (
    MARKS,
    TERMINAL,
    Watched,
    await_end,
    check,
    deploy_parent,
    items,
    read_run,
    set_state,
    start,
)
from tests.support import eventually

pytestmark = MARKS


@pytest.fixture
def parent(stack: Stack) -> str:
    """The parent deployment, on the pool of the children; items get two seconds to end."""
    return deploy_parent()


def slow(count: int, seconds: float = 1.0) -> list[dict[str, Any]]:
    return [{"n": n, "seconds": seconds} for n in range(count)]


def form(work: str, job: Watched, what: list[Any], **more: Any) -> dict[str, Any]:
    """What a person fills into the parent's form."""
    advanced = {"storage": job.storage, **more.pop("advanced", {})}
    return {
        "deployment": work,
        "items": {"kind": "inline", "items": what},
        "parameters": job.parameters,
        "advanced": advanced,
        **more,
    }


def report_of(job: Watched, deadline_seconds: float = 60) -> Report:
    """The job's report once it is written."""
    data = eventually(lambda: job.folder.read_report(), deadline_seconds, "the report")
    return Report.from_json(data or {})


def process_of(stack: Stack, run_id: str) -> int:
    """Of a run on a process pool: `<host>:<pid>`, once it is known."""
    text = eventually(lambda: read_run(stack, run_id)["infrastructure_pid"], 30, "the run's process")
    return int(str(text).rpartition(":")[2])


def retry_in_the_ui(stack: Stack, run_id: str) -> None:
    """Press Retry, again if need be: the worker reports a crash twice, and its second word would undo the first press.

    Source: the UI's `retryFlowRun` sets this very state, unforced, 3.8.8.
    """

    def goes_on() -> bool:
        if read_run(stack, run_id)["state_type"] == "CRASHED":
            set_state(stack, run_id, "SCHEDULED", "AwaitingRetry")
        return bool(read_run(stack, run_id)["state_type"] in ("PENDING", "RUNNING", "COMPLETED"))

    eventually(goes_on, 30, "the retry")


# ---------------------------------------------------------------------- cancelled


def test_a_parent_cancelled_in_the_ui_ends_its_children_and_reports(
    work: str, job: Watched, stack: Stack, parent: str
) -> None:
    run_id = start(stack, form(work, job, [*slow(80), *items(5)], batch_size=40, max_in_flight=2), deployment=parent)
    job.job = f"{run_id}-1"
    eventually(lambda: {0, 40} <= set(job.started()), 90, "both children at work")
    set_state(stack, run_id, "CANCELLING", "Cancelling")
    run = await_end(stack, run_id)
    assert (run["state_type"], run["state_name"]) == ("CANCELLED", "Cancelled")
    report = report_of(job)
    eventually(lambda: not [r for r in job.children() if r["state_type"] not in TERMINAL], 60, "the children's end")
    check(job, report, max_in_flight=2)
    assert (report.verdict.value, report.exit_code) == ("cancelled", 4)
    assert report.items.succeeded >= 1
    assert report.batches.not_submitted == 1
    assert report.items.not_started >= 45
    print(report.items, report.batches, "seconds", report.seconds)
    assert job.last_start() <= job.stopped_at() + 1.5


def test_children_of_a_cancelled_parent_that_abandons_them_finish_their_batch(
    work: str, job: Watched, stack: Stack, parent: str
) -> None:
    asked = form(
        work, job, [*slow(12), *items(2)], batch_size=12, max_in_flight=1, advanced={"on_parent_cancelled": "abandon"}
    )
    run_id = start(stack, asked, deployment=parent)
    job.job = f"{run_id}-1"
    job.wait_until_started(1, 90)
    set_state(stack, run_id, "CANCELLING", "Cancelling")
    assert await_end(stack, run_id)["state_type"] == "CANCELLED"
    assert job.folder.read_stop() is None
    eventually(lambda: len(job.trace("end")) == 12, 60, "the batch")
    (child,) = job.children()
    assert await_end(stack, child["id"])["state_type"] == "COMPLETED"
    # What the parent did not come to is resumed by anybody who knows the job's id.
    report = resume_sync(job.job, storage=job.storage)
    check(job, report, max_in_flight=1)
    assert report.items.succeeded == 14
    assert sorted(job.started()) == list(range(14))


# ---------------------------------------------------------------------- killed


def test_a_killed_script_is_resumed_by_job_id_and_its_live_children_are_adopted(
    work: str, job: Watched, tmp_path: Path
) -> None:
    what = [{"n": n, "seconds": 0.5} for n in range(36)]
    script = textwrap.dedent(f"""
        from orchestrator import orchestrate_sync
        orchestrate_sync({work!r}, {what!r}, batch_size=12, max_in_flight=2, **{job.request!r})
    """)
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        eventually(lambda: {0, 12} <= set(job.started()), 90, "two children at work")
    finally:
        process.kill()
        process.wait()
    before = [run["id"] for run in job.children()]
    report = resume_sync(job.job, storage=job.storage)
    check(job, report, max_in_flight=2)
    assert (report.verdict.value, report.items.succeeded) == ("completed", 36)
    # Those that ran or were over are the same runs; of the three batches none has a second one.
    assert [run["id"] for run in job.children()][: len(before)] == before
    assert len(job.children()) == 3
    assert job.started() == sorted(set(job.started()), key=job.started().index), "an item ran twice"
    assert len(job.started()) == 36
    # Once more: nothing is left to do, and the report is the same.
    assert resume_sync(job.job, storage=job.storage) == report
    assert len(job.children()) == 3


def test_a_killed_parent_run_goes_on_when_it_is_retried_in_the_ui(
    work: str, job: Watched, stack: Stack, parent: str
) -> None:
    what = [{"n": n, "seconds": 0.5} for n in range(40)]
    run_id = start(stack, form(work, job, what, batch_size=20, max_in_flight=1), deployment=parent)
    job.job = f"{run_id}-1"
    job.wait_until_started(1, 90)
    os.kill(process_of(stack, run_id), signal.SIGKILL)
    assert await_end(stack, run_id)["state_type"] == "CRASHED"
    retry_in_the_ui(stack, run_id)
    assert await_end(stack, run_id, 120)["state_type"] == "COMPLETED"
    report = report_of(job)
    check(job, report, max_in_flight=1)
    assert report.items.succeeded == 40
    assert [run["name"] for run in job.children()] == ["it-work 1/2", "it-work 2/2"]
    assert max(Counter(job.started()).values()) == 1


# ---------------------------------------------------------------------- again


def test_a_flow_that_raises_after_its_job_gets_the_old_report_on_its_retry(work: str, job: Watched) -> None:
    reports: list[Report] = []

    @flow(retries=1, name="it-retried")
    def mine() -> None:
        reports.append(orchestrate_sync(work, items(3), batch_size=3, storage=job.storage, parameters=job.parameters))
        if len(reports) == 1:
            raise RuntimeError("what comes after the job fails once")

    mine()
    first, second = reports
    job.job = first.job_id
    assert second == first
    check(job, first)
    assert job.started() == [0, 1, 2]


def test_a_job_id_in_use_with_another_request_is_refused_with_the_differences(work: str, job: Watched) -> None:
    report = orchestrate_sync(work, items(2), batch_size=2, **job.request)
    with pytest.raises(JobConflictError, match="batch_size: 2 there, 1 here") as refused:
        orchestrate_sync(work, items(3), batch_size=1, **job.request)
    assert refused.value.differences["batch_size"] == (2, 1)
    assert set(refused.value.differences) == {"batch_size", "items"}
    assert refused.value.exit_code == 2
    assert orchestrate_sync(work, items(2), batch_size=2, **job.request) == report
    assert len(job.children()) == 1


async def test_a_tripped_job_refuses_to_go_on_and_points_to_what_can_be_done(work: str, job: Watched) -> None:
    asked = form(work, job, [{"n": 0, "fail": "ValueError"}, {"n": 1}], batch_size=1, max_in_flight=1)
    asked |= {"kill_switch": "failed >= 1", "advanced": {"storage": job.storage, "job_id": job.job}}
    assert (await orchestrate_flow(**asked, return_state=True)).name == "Tripped"
    again = await orchestrate_flow(**asked, return_state=True)
    assert (again.type.value, again.name) == ("FAILED", "Refused")
    assert f"job:{job.job}?outcome=failed" in str(again.message)
    check(job, report_of(job))
    # And that works: the items that are left, as a job of their own.
    rest = Watched(job.stack, job.home, f"{job.job}-rest")
    report = orchestrate_sync(
        work, f"job:{job.job}?outcome=failed,unknown,not_started", kill_switch=None, on_failure="return", **rest.request
    )
    assert (report.items.total, report.items.succeeded, report.items.failed) == (2, 1, 1)
