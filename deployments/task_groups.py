"""A task group per document: two tasks at the same time, a third that waits for both; many groups at once."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from orchestrator import batch_flow

GROUPS = 20  # at once in one child run
TASKS = 3  # per group: each has a thread, the third one while it waits for the first two


@task(task_run_name="count {path}")
def task_1(path: str) -> int:
    """How many words the document has."""
    return len(Path(path).read_text().split())


@task(task_run_name="date {path}", retries=1)
def task_2(path: str) -> str:
    """The day on which it was written."""
    return datetime.fromtimestamp(Path(path).stat().st_mtime, UTC).date().isoformat()


@task(task_run_name="describe {path}")
def task_3(path: str, words: int, day: str) -> str:
    """One line about it."""
    return f"{Path(path).name}: {words} words, {day}"


def group(path: str) -> dict[str, PrefectFuture[Any]]:
    """Describe documents.

    Args:
        path: One document.

    Returns:
        All three futures; the item's result is the mapping of theirs.
    """
    words: Any = task_1.submit(path)
    day: Any = task_2.submit(path)
    line = task_3.submit(path, words, day)
    return {"words": words, "day": day, "line": line}


task_groups = batch_flow(
    group,
    name="task-groups",
    item_concurrency=GROUPS,
    task_runner=ThreadPoolTaskRunner(max_workers=GROUPS * TASKS),
)


@flow(task_runner=ThreadPoolTaskRunner(max_workers=GROUPS * TASKS))  # type: ignore[arg-type]
def by_hand(paths: list[str]) -> list[str]:
    """The same group in a flow of one's own."""
    groups = [group(path) for path in paths]
    return [each["line"].result() for each in groups]
