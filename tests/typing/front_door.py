"""How users type our front door, checked by `mypy --strict`; never run.

A line with `# type: ignore[code]` is one that must be an error: `warn_unused_ignores` fails when it no longer is.
"""

from __future__ import annotations

import asyncio
from typing import assert_type

from prefect import flow

from orchestrator import (
    ConfigurationError,
    CrashedBatches,
    FailedCount,
    FailedRate,
    JobError,
    JobFolder,
    KillSwitchTrippedError,
    Report,
    open_job,
    orchestrate,
    orchestrate_sync,
    resume_sync,
)
from orchestrator.core.model import ItemOutcome
from orchestrator.core.report import ErrorCluster, ItemCounts
from orchestrator.reactor import JobView
from orchestrator.store import OutcomeRecord


async def plain() -> Report:
    return assert_type(await orchestrate("measure/default", range(1000)), Report)


async def everything() -> int:
    report = await orchestrate(
        {"video": "video/gpu", "*": "measure/default"},
        [{"id": 1, "kind": "video"}],
        batch_size=10,
        max_in_flight=4,
        kill_switch=FailedCount(10) | FailedRate(0.05, min_sample=200) | ~CrashedBatches(3),
        parameters={"depth": 3},
        on_trip="drain",
        enough_when="succeeded >= 100",
        fail_if=None,
        group_by="kind",
        key="id",
        tags=["nightly"],
        batch_timeout_seconds=600,
        max_requests_per_minute=120,
        on_parent_cancelled="abandon",
        on_progress=watch,
        on_failure="return",
    )
    return report.exit_code


def watch(view: JobView) -> None:
    assert_type(view.eta_seconds, float | None)
    print(view.settled, view.total, view.in_flight.get("Running", 0))


@flow
def nightly(day: str) -> int:
    try:
        report = orchestrate_sync("measure/default", f"s3://bucket/{day}/*.parquet", kill_switch="failed >= 10")
    except KillSwitchTrippedError as tripped:
        assert_type(tripped.report, Report)
        return tripped.report.items.not_started
    except JobError as error:
        return error.report.items.failed
    except ConfigurationError as refused:
        assert_type(refused.field, str | None)
        raise
    assert_type(report.items, ItemCounts)
    return report.items.succeeded


def reading(url: str) -> list[OutcomeRecord]:
    folder = JobFolder(url)
    failed = [record for record in folder.outcomes() if record.outcome is ItemOutcome.FAILED]
    for record in failed:
        assert_type(record.error_text, str | None)
    return failed


def opened() -> int:
    assert_type(open_job("job-1"), JobFolder)
    return open_job("job-1", storage="s3://bucket/jobs").read_job().total


def again() -> list[ErrorCluster]:
    return list(resume_sync("job-1", storage="s3://bucket/jobs").errors)


async def wrong() -> None:
    await orchestrate("measure/default")  # type: ignore[call-arg]
    await orchestrate("measure/default", [], on_trip="explode")  # type: ignore[arg-type]
    await orchestrate("measure/default", [], batch_size="many")  # type: ignore[arg-type]
    open_job(1)  # type: ignore[arg-type]
    await orchestrate("measure/default", [], colour="red")  # type: ignore[call-arg]
    FailedCount("ten")  # type: ignore[arg-type]


if __name__ == "__main__":
    asyncio.run(plain())
