"""Whole jobs on a real server and worker: how they end, and what people see of them."""

from __future__ import annotations

from typing import Any

import pytest
from prefect import flow

from orchestrator import JobFailedError, Report, orchestrate, orchestrate_sync
from orchestrator.stack import Stack
from tests.integration.job_support import MARKS, Watched, check, items

pytestmark = MARKS


async def test_a_job_in_ones_own_async_flow(work: str, job: Watched, stack: Stack) -> None:
    run_ids: list[str] = []

    @flow(name="it-own-async")
    async def mine() -> Report:
        from prefect.runtime import flow_run

        run_ids.append(str(flow_run.id))
        return await orchestrate(
            work,
            items(20),
            batch_size=2,
            max_in_flight=3,
            tags=["mine"],
            storage=job.storage,
            parameters=job.parameters,
        )

    report = await mine()
    job.job = report.job_id
    check(job, report, max_in_flight=3)
    assert report.job_id == f"{run_ids[0]}-1"
    assert (report.verdict.value, report.items.succeeded, report.batches.completed) == ("completed", 20, 10)
    assert [o.result for o in job.outcomes()] == list(range(20))
    assert [run["name"] for run in job.children()] == [f"it-work {n}/10" for n in range(1, 11)]
    for run in job.children():
        assert {"orchestrator", f"job:{report.job_id}", "mine"} <= set(run["tags"])
        assert (run["state_type"], run["state_name"]) == ("COMPLETED", "Completed")
        assert run["parameters"]["batch"]["job"] == report.job_id
        assert "items" not in run["parameters"]
    pages = stack.request("POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": run_ids}}})
    assert [page["type"] for page in pages] == ["markdown"]
    assert "20 items succeeded" in pages[0]["data"]
    # The promise on requests: at most 6 per attempt and 60 per minute.
    print("requests:", report.api_requests, "in", report.seconds, "s")
    assert report.api_requests <= 6 * 10 + 60 * max(1.0, report.seconds / 60)


def test_a_job_in_ones_own_sync_flow_with_failures_inside_batches(work: str, job: Watched) -> None:
    mixed = (
        items(4) + [{"n": n, "fail": "ValueError"} for n in (4, 5)] + [{"n": n, "fail": "TimeoutError"} for n in (6, 7)]
    )

    @flow(name="it-own-sync")
    def mine() -> Report:
        return orchestrate_sync(work, mixed, batch_size=3, max_in_flight=2, kill_switch=None, **job.request)

    with pytest.raises(JobFailedError, match="4 of 8 items failed") as raised:
        mine()
    report = raised.value.report
    check(job, report, max_in_flight=2)
    assert (report.verdict.value, report.failed_by_rule, report.exit_code) == ("completed", True, 1)
    assert [(run["state_type"], run["state_name"]) for run in job.children()] == [
        ("COMPLETED", "Completed"), ("COMPLETED", "CompletedWithFailures"), ("FAILED", "Failed"),
    ]  # fmt: skip
    assert (report.batches.completed, report.batches.failed) == (2, 1)
    data: dict[str, Any] = report.to_json()
    assert data["items"] == {"total": 8, "succeeded": 4, "failed": 4, "unknown": 0, "not_started": 0}
    assert sorted((e["type"], e["count"]) for e in data["errors"]) == [("TimeoutError", 2), ("ValueError", 2)]
    assert {e["example"] for e in data["errors"]} <= {f"item {n} is bad" for n in range(8)}
    assert data["kill_switch"]["first_failure"]["text"] == "item 4 is bad"
    assert set(data) >= {
        "job_id", "verdict", "failed_by_rule", "reason", "deployment", "seconds", "items", "batches", "kill_switch",
        "errors", "max_in_flight_seen", "api_requests", "storage", "url",
    }  # fmt: skip


def test_a_failure_that_the_rule_allows_is_no_failure(work: str, job: Watched) -> None:
    mixed = [*items(3), {"n": 3, "fail": "ValueError"}]
    report = orchestrate_sync(work, mixed, batch_size=4, fail_if="failed_rate > 0.5", **job.request)
    check(job, report)
    assert (report.ok, report.items.failed, report.exit_code) == (True, 1, 0)


def test_an_empty_collection_is_a_completed_job(work: str, job: Watched) -> None:
    report = orchestrate_sync(work, [], **job.request)
    check(job, report)
    assert (report.verdict.value, report.items.total, job.children()) == ("completed", 0, [])
