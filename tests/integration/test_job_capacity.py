"""How many children at once, what they wait for, and how the parent learns of their end, on a real server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import orchestrator.engine.parent
from orchestrator import orchestrate_sync
from orchestrator.errors import ConfigurationError
from orchestrator.stack import Stack
from tests.integration.job_support import (
    MARKS,
    Watched,
    await_end,
    check,
    deploy_parent,
    deploy_work,
    items,
    seconds,
    start,
)

pytestmark = MARKS


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_children_that_wait_for_capacity_spend_no_attempt(stack: Stack, job: Watched) -> None:
    stack.create_pool("it-narrow", limit=4)
    worker = stack.start_worker(pool="it-narrow", limit=1)
    deployed = deploy_work("narrow", pool="it-narrow")
    try:
        first = Watched(stack, job.home, f"{job.job}-first")
        orchestrate_sync(deployed, items(1), **first.request)
        # Five seconds, unless this machine takes so long to start one child that even a lone one could be too late.
        start_timeout = max(5.0, 3 * time_in(first, "PENDING")[0])
        # One after the other: the last of them waits for four.
        report = orchestrate_sync(
            deployed, items(5, seconds=max(2.0, start_timeout / 3)), batch_size=1, max_in_flight=8,
            start_timeout_seconds=start_timeout,
            **job.request,
        )  # fmt: skip
    finally:
        stack.stop_worker(worker)
    check(job, report, max_in_flight=4)
    assert (report.items.succeeded, report.max_in_flight, report.max_in_flight_seen) == (5, 4, 4)
    assert [run["name"] for run in job.children()] == [f"it-work {n}/5" for n in range(1, 6)]
    # They did wait, longer than the start timeout; none was taken for lost.
    waited = max(time_in(job, "SCHEDULED"))
    print(f"start timeout {start_timeout:.1f} s; longest wait {waited:.1f} s")
    assert waited > start_timeout


def time_in(job: Watched, phase: str) -> list[float]:
    """Seconds each child spent in a phase, by the server's record."""
    spent = []
    for run in job.children():
        states = job.states(run["id"])
        times = [seconds(s["timestamp"]) for s in states]
        spent.append(sum(b - a for s, a, b in zip(states, times, times[1:], strict=False) if s["type"] == phase))
    return spent


def test_a_parent_that_holds_the_only_place_of_the_pool_is_refused(stack: Stack, job: Watched) -> None:
    stack.create_pool("it-single", limit=1)
    worker = stack.start_worker(pool="it-single")
    try:
        asked = {
            "deployment": deploy_work("single", pool="it-single"),
            "items": {"kind": "range", "stop": 3},
            "parameters": job.parameters,
            "advanced": job.advanced,
        }
        run = await_end(stack, start(stack, asked, deployment=deploy_parent("it-single", pool="it-single")))
    finally:
        stack.stop_worker(worker)
    assert (run["state_type"], run["state_name"]) == ("FAILED", "Refused")
    assert "the only place of work pool 'it-single' (limit 1)" in run["state"]["message"]
    assert job.children() == []
    assert not list(job.home.glob("jobs/*/job.json"))


@pytest.mark.parametrize("how", ["polling_only", "waits_that_never_return"])
def test_a_job_ends_without_any_event(work: str, job: Watched, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a run may come before the wait subscribes, and its event be lost: then the wait lasts for hours."""

    async def never(*_: Any, **__: Any) -> None:
        await asyncio.sleep(3600)

    if how == "polling_only":
        monkeypatch.setenv("ORCHESTRATOR_MAX_WAITS", "0")
    else:
        monkeypatch.setattr(orchestrator.engine.parent, "wait_for_flow_run", never)
    report = orchestrate_sync(work, items(3), batch_size=1, max_in_flight=2, **job.request)
    check(job, report, max_in_flight=2)
    assert report.items.succeeded == 3
    # The parent's own polling, every three seconds, was enough.
    ended = max(seconds(run["end_time"]) for run in job.children())
    assert (job.folder_written("report.json") - ended) < 6


def test_each_group_runs_on_its_own_deployment(work: str, stack: Stack, job: Watched) -> None:
    other = deploy_work("other")
    what = [{"n": 0, "size": "small"}, {"n": 1, "size": "small"}, {"n": 2, "size": "large"}]
    with pytest.raises(ConfigurationError, match="no deployment for group 'small'"):
        orchestrate_sync({"large": other}, what, group_by="size", **job.request)
    assert job.children() == []
    report = orchestrate_sync({"large": other, "*": work}, what, group_by="size", max_in_flight=2, **job.request)
    check(job, report, max_in_flight=2)
    assert report.items.succeeded == 3
    ids = {name: stack.request("GET", f"/deployments/name/{name}")["id"] for name in (work, other)}
    assert [run["deployment_id"] for run in job.children()] == [ids[work], ids[other]]
    assert [run["parameters"]["batch"]["count"] for run in job.children()] == [2, 1]
