"""Cleanup on a real server: what killed parents leave, a deployed cleanup, runs that only look like ours."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.core.model import idempotency_key
from orchestrator.core.report import Report
from orchestrator.engine.registering import register
from orchestrator.flows.cleanup import clean_up, cleanup_flow, look_around, read_rules
from orchestrator.flows.survey import Act, Survey
from orchestrator.settings import Settings
from orchestrator.stack import Stack
from orchestrator.stack.own import CLEANUP
from tests.integration.job_support import (
    MARKS,
    POOL,
    TERMINAL,
    Watched,
    await_end,
    check,
    deploy_parent,
    read_run,
    set_state,
    start,
)
from tests.support import eventually

pytestmark = MARKS
QUICK = {
    "ORCHESTRATOR_BEAT_SECONDS": "1",
    "ORCHESTRATOR_LEASE_SECONDS": "8",
    "ORCHESTRATOR_FENCE_SECONDS": "1",
    "ORCHESTRATOR_ITEM_GRACE_SECONDS": "2",
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A parent is silent after eight seconds, and watched for two and a half."""
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    return


def looked(job: Watched, settle_after: str = "0s") -> Survey:
    rules = read_rules("30d", settle_after, Settings())
    return asyncio.run(look_around(job.storage, rules, Settings()))


def of_act(found: Survey, act: Act) -> list[str]:
    return [finding.subject for finding in found.findings if finding.act is act]


def slow(count: int) -> list[dict[str, Any]]:
    return [{"n": n, "seconds": 1.0} for n in range(count)]


def forged_run(stack: Stack, job: Watched, key: str | None = None) -> str:
    """A running flow run of somebody who uses our tags."""
    flow = stack.request("POST", "/flows/", {"name": "somebody-elses"})
    body = {"flow_id": flow["id"], "tags": ["orchestrator", f"job:{job.job}"], "name": f"forged-{key}"}
    run = stack.request("POST", "/flow_runs/", body | ({"idempotency_key": key} if key else {}))
    set_state(stack, run["id"], "RUNNING", "Running", force=True)
    return str(run["id"])


def test_a_deployed_cleanup_settles_the_job_of_a_killed_parent_and_touches_nothing_that_is_not_ours(
    work: str, job: Watched, stack: Stack
) -> None:
    parent = deploy_parent(**QUICK)
    asked = {
        "deployment": work, "items": {"kind": "inline", "items": slow(120)}, "batch_size": 60, "max_in_flight": 2,
        "parameters": job.parameters, "advanced": job.advanced,
    }  # fmt: skip
    run_id = start(stack, asked, deployment=parent)
    job.wait_until_started(2, 90)
    os.kill(int(str(read_run(stack, run_id)["infrastructure_pid"]).rpartition(":")[2]), signal.SIGKILL)
    assert await_end(stack, run_id)["state_type"] == "CRASHED"
    forged = [forged_run(stack, job), forged_run(stack, job, idempotency_key(job.job, "0" * 16, 0, 0))]

    early = looked(job, settle_after="1h")
    assert of_act(early, Act.SETTLE) == []
    assert f"`orchestrator resume {job.job}` goes on with it" in str(early.findings)
    found = looked(job)
    assert of_act(found, Act.SETTLE) == [f"job {job.job}"]
    strange = [finding.why for finding in found.findings if finding.why.startswith("not ours")]
    assert sum(job.job in why for why in strange) == 2, strange  # other tests on this server may have left some too
    assert job.folder.read_stop() is None

    asyncio.run(
        register(
            cleanup_flow, "it", pool=POOL, version="test", schedules=CLEANUP.schedules, job_variables={"env": QUICK}
        )
    )  # fmt: skip
    cleanup = start(
        stack, {"dry_run": False, "settle_after": "0s", "storage": job.storage}, deployment="cleanup-jobs/it"
    )  # fmt: skip
    ended = await_end(stack, cleanup)
    assert (ended["state_type"], ended["state"]["message"]) == ("COMPLETED", "1 cleaned up")
    (page,) = stack.request("POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [cleanup]}}})
    assert f"| settle | job {job.job}".replace("_", "\\_") in page["data"]
    assert "| settled: " in page["data"]
    report = Report.from_json(job.folder.read_report() or {})
    left = [run for run in job.children() if run["state_type"] not in TERMINAL]
    assert {run["id"] for run in left} == set(forged), "theirs run, ours have ended"
    for id_ in forged:
        set_state(stack, id_, "CANCELLED", "Cancelled", force=True)
    check(job, report, max_in_flight=4)
    assert report.verdict.value == "cancelled"
    assert report.reason.startswith("cleanup: its parent run ended ")
    assert report.items.succeeded > 0
    # Its page, on the parent's run, is the report.
    (shown,) = stack.request("POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run_id]}}})
    assert "cleanup: its parent run ended" in shown["data"]


def test_the_schedule_of_the_deployed_cleanup_is_paused_and_stays_as_people_set_it(stack: Stack) -> None:
    def registered() -> dict[str, Any]:
        asyncio.run(register(cleanup_flow, "again", pool=POOL, version="test", schedules=CLEANUP.schedules))
        found: dict[str, Any] = stack.request("GET", "/deployments/name/cleanup-jobs/again")
        return found

    first = registered()
    (schedule,) = first["schedules"]
    assert (schedule["active"], schedule["schedule"]["cron"]) == (False, "30 4 * * *")
    assert schedule["parameters"] == {"dry_run": False}
    assert first["parameter_openapi_schema"]["properties"]["dry_run"]["default"] is True
    path = f"/deployments/{first['id']}/schedules/{schedule['id']}"
    stack.request("PATCH", path, {"active": True, "schedule": {"cron": "0 1 * * 0"}})
    (schedule,) = registered()["schedules"]
    assert (schedule["active"], schedule["schedule"]["cron"]) == (True, "0 1 * * 0")
    stack.request("PATCH", path, {"active": False})


@pytest.mark.slow
def test_a_cleanup_that_is_killed_is_finished_by_two_at_once(work: str, job: Watched) -> None:
    script = textwrap.dedent(f"""
        from orchestrator import orchestrate_sync
        orchestrate_sync({work!r}, {slow(120)!r}, batch_size=60, max_in_flight=2, **{job.request!r})
    """)
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        job.wait_until_started(2, 90)
    finally:
        process.kill()
        process.wait()
    eventually(lambda: of_act(looked(job), Act.SETTLE), 60, "the job of the killed process")
    command = [sys.executable, "-m", "orchestrator", "cleanup", "--settle-after", "0s", "--yes", "--json"]
    command += ["--storage", job.storage]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: job.folder.newest_epoch() == 2, 60, "the cleanup takes the job over")
    finally:
        first.kill()
        first.wait()
    assert job.folder.read_report() is None
    eventually(lambda: of_act(looked(job), Act.SETTLE), 60, "the job of the killed cleanup")
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [json.loads(process.communicate(timeout=120)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    done = [finding["done"]["said"].split(":")[0] for one in said for finding in one["findings"] if finding["done"]]
    assert "settled" in done
    assert set(done) <= {"settled", "left alone"}
    report = Report.from_json(job.folder.read_report() or {})
    check(job, report, max_in_flight=2)
    assert report.verdict.value == "cancelled"
    assert of_act(looked(job), Act.SETTLE) == []
    assert asyncio.run(clean_up(looked(job), Settings())) == []
