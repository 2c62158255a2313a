"""The flows: one batch flow per stage, and the nightly run of a stage over what is new."""

from __future__ import annotations

import datetime
from functools import partial
from typing import Any, Literal

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from deployments.records.tasks import extract, load, pages_of, publish, transform
from orchestrator import batch_flow, orchestrate_sync

SOURCE = "http://127.0.0.1:8901"
AT_ONCE = 4


def ingest_page(item: dict[str, Any], *, source: str = SOURCE, warehouse: str | None = None,
                timeout_seconds: float = 10) -> Any:  # fmt: skip
    """Fetch, clean and load pages of orders.

    A task group: a page is loaded as soon as it was fetched, whatever the other pages do. When it could not be
    fetched it is not loaded, and its item fails with the reason.

    Args:
        item: {"page": name}.
        source: URL of the source.
        warehouse: SQLAlchemy URL without a password; RECORDS_WAREHOUSE of the worker if empty.
        timeout_seconds: Longest wait for an answer of the source.
    """
    page = item["page"]
    orders = extract.submit(page, source, timeout_seconds)
    return load.submit(orders, page, warehouse)  # type: ignore[call-overload]  # Prefect hands on what it gives


def transform_page(item: dict[str, Any], *, warehouse: str | None = None) -> Any:
    """Make sales from the orders of pages that were ingested.

    Args:
        item: What `ingest_page` returned.
        warehouse: As for `ingest_page`.
    """
    return transform.submit(item["page"], warehouse)


def publish_page(item: dict[str, Any], *, warehouse: str | None = None) -> Any:
    """Make totals from the sales of pages that were transformed.

    Args:
        item: What `transform_page` returned.
        warehouse: As for `ingest_page`.
    """
    return publish.submit(item["page"], warehouse)


# A step that waits for another holds a thread of the task runner: two steps per page, twice the threads.
_RUNNER: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=2 * AT_ONCE)
records_ingest = batch_flow(ingest_page, name="records-ingest", item_concurrency=AT_ONCE, task_runner=_RUNNER)
records_transform = batch_flow(transform_page, name="records-transform", item_concurrency=AT_ONCE, task_runner=_RUNNER)
records_publish = batch_flow(publish_page, name="records-publish", item_concurrency=AT_ONCE, task_runner=_RUNNER)


@flow(name="records-nightly")
def records_nightly(stage: Literal["ingest", "transform", "publish"], day: datetime.date | None = None,
                    source: str = SOURCE, warehouse: str | None = None) -> dict[str, Any]:  # fmt: skip
    """Run one stage over what is new: what the stage before it has done, and it has not.

    Args:
        stage: Which.
        day: The night's name; today if empty. The same night again goes on with its job, or tells how it ended.
        source: URL of the source, for `ingest`.
        warehouse: As for `ingest_page`.
    """
    before = {"transform": "ingest", "publish": "transform"}
    report = orchestrate_sync(
        f"records-{stage}/default",
        partial(pages_of, source) if stage == "ingest" else f"results:records-{before[stage]}-*",
        job_id=f"records-{stage}-{day or datetime.date.today()}",
        key="page",
        skip_succeeded_of=f"records-{stage}-*",
        batch_size=50,
        max_in_flight=2,
        kill_switch="(failed_rate > 0.5 and settled >= 20) or crashed_batches >= 2 or stalled > 1800",
        parameters={"warehouse": warehouse} | ({"source": source} if stage == "ingest" else {}),
    )
    counts: dict[str, Any] = report.to_json()["items"]
    return counts
