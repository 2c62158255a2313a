"""Parents that end before their job, as whole processes on a real server: what becomes of their children, by policy.

The ways of ending inside a process are in tests/unit/flows/test_close_policy.py; the table is in docs/operations.md.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pytest

from orchestrator import resume_sync
from orchestrator.core.model import StopMode
from orchestrator.stack import Stack
from tests.integration import job_flows
from tests.integration.job_support import (
    MARKS,
    TERMINAL,
    Watched,
    await_end,
    check,
    deploy,
    deploy_parent,
    deploy_work,
    items,
    read_run,
    set_state,
    start,
    timed,
)
from tests.integration.test_job_parents import form, report_of, slow
from tests.support import eventually

pytestmark = MARKS
TIMES = {"ORCHESTRATOR_FENCE_SECONDS": "1", "ORCHESTRATOR_ITEM_GRACE_SECONDS": "2"}


def await_children(job: Watched, deadline_seconds: float = 60) -> None:
    eventually(
        lambda: all(run["state_type"] in TERMINAL for run in job.children()), deadline_seconds, "the children's end"
    )


@pytest.mark.parametrize("flow", ["own", pytest.param("own_sync", marks=pytest.mark.campaign)])
def test_ones_own_flow_that_is_cancelled_in_the_ui_ends_its_children_and_reports(
    work: str, job: Watched, stack: Stack, flow: str
) -> None:
    deployed = deploy(getattr(job_flows, flow), flow, flow, job_variables={"env": TIMES})
    asked = {**job.request, "batch_size": 40, "max_in_flight": 2}
    run_id = start(stack, {"deployment": work, "items": slow(120), "asked": asked}, deployment=deployed)
    eventually(lambda: {0, 40} <= set(job.started()), 120, "both children at work")
    set_state(stack, run_id, "CANCELLING", "Cancelling")
    with timed("from the request to the parent's end"):
        assert await_end(stack, run_id)["state_type"] == "CANCELLED"
    report = report_of(job)
    await_children(job)
    check(job, report, max_in_flight=2)
    assert (report.verdict.value, report.batches.not_submitted) == ("cancelled", 1)
    assert job.last_start() <= job.stopped_at() + 1.5


@pytest.mark.timeout(300)
def test_a_parent_whose_worker_is_dead_finds_by_itself_that_it_is_cancelled(job: Watched, stack: Stack) -> None:
    stack.create_pool("it-alone")
    worker = stack.start_worker(pool="it-alone")
    work = deploy_work("alone", pool="it-alone")
    deployed = deploy(job_flows.own, "own", "alone", pool="it-alone", job_variables={"env": TIMES})
    asked = {**job.request, "batch_size": 40, "max_in_flight": 2}
    try:
        run_id = start(stack, {"deployment": work, "items": slow(120), "asked": asked}, deployment=deployed)
        eventually(lambda: {0, 40} <= set(job.started()), 120, "both children at work")
    finally:
        stack.kill_worker(worker)
    set_state(stack, run_id, "CANCELLING", "Cancelling")
    with timed("from the request to the report"):
        report = report_of(job)
    await_children(job)  # they end themselves: nobody else is left who could
    check(job, report, max_in_flight=2)
    assert report.verdict.value == "cancelled"
    assert report.batches.unconfirmed == 0
    assert report.items.unknown == 0
    # Its flow raised, which Prefect does not take from a run that is Cancelling: the server ends it, minutes later.
    assert read_run(stack, run_id)["state_type"] in ("CANCELLING", "CANCELLED")


def test_children_of_a_cancelled_parent_that_drains_finish_their_batch_and_nothing_more_is_started(
    work: str, job: Watched, stack: Stack
) -> None:
    parent = deploy_parent()
    what = [*slow(6), *items(6)]
    asked = form(work, job, what, batch_size=6, max_in_flight=1, advanced={"on_parent_cancelled": "drain"})
    run_id = start(stack, asked, deployment=parent)
    job.job = f"{run_id}-1"
    job.wait_until_started(1, 120)
    set_state(stack, run_id, "CANCELLING", "Cancelling")
    assert await_end(stack, run_id, 120)["state_type"] == "CANCELLED"
    stop = job.folder.read_stop()
    assert stop is not None
    assert stop.mode is StopMode.DRAIN
    report = report_of(job)
    check(job, report, max_in_flight=1)
    assert (report.verdict.value, report.items.succeeded, report.items.not_started) == ("cancelled", 6, 6)
    assert [run["state_type"] for run in job.children()] == ["COMPLETED"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_children_of_parents_that_are_gone_end_by_themselves_or_finish_their_batch_as_asked(
    work: str, job: Watched, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {**TIMES, "ORCHESTRATOR_BEAT_SECONDS": "2", "ORCHESTRATOR_LEASE_SECONDS": "6"}
    for name, value in times.items():
        monkeypatch.setenv(name, value)
    jobs = {}
    for policy in ("cancel", "drain", "abandon"):
        (job.home / policy).mkdir()
        jobs[policy] = Watched(stack, job.home / policy, f"{job.job}-{policy}")
    processes = [subprocess.Popen([sys.executable, "-c", vanishing(work, one, policy)]) for policy, one in jobs.items()]
    try:
        with timed("until the parents are gone"):
            assert [process.wait(timeout=200) for process in processes] == [9, 9, 9]
        for one in jobs.values():
            await_children(one, 120)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    ends = {policy: [run["state_name"] for run in one.children()] for policy, one in jobs.items()}
    assert ends == {"cancel": ["LeaseLost"], "drain": ["Completed"], "abandon": ["Completed"]}
    for policy, one in jobs.items():
        assert one.folder.read_stop() is None, policy
    # And every one of them can be resumed: nothing is lost, and what was done is not done again.
    report = resume_sync(jobs["cancel"].job, storage=jobs["cancel"].storage)
    check(jobs["cancel"], report)
    assert report.items.succeeded == 26


def vanishing(work: str, job: Watched, policy: str) -> str:
    """A program that starts a job of two batches, one after the other, and vanishes once the first is at work."""
    asked: dict[str, Any] = {**job.request, "batch_size": 24, "max_in_flight": 1, "on_parent_cancelled": policy}
    return textwrap.dedent(f"""
        import os
        from pathlib import Path
        from orchestrator import orchestrate_sync
        trace = Path({str(job.trace_folder / job_flows.TRACE)!r})
        what = [{{"n": n, "seconds": 0.5}} for n in range(24)] + [{{"n": 24}}, {{"n": 25}}]
        def look(view):
            if trace.exists():
                os._exit(9)
        orchestrate_sync({work!r}, what, on_progress=look, **{asked!r})
    """)
