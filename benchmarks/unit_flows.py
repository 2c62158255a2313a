"""What an item can be, for `units`: each does nothing, so that what is measured is the price of the unit."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.task_runners import ThreadPoolTaskRunner

from benchmarks.flows import nothing
from orchestrator import batch_flow

AT_ONCE, STEPS = 10, 4
each = task(nothing, name="bench-unit")


@task
def step(*before: Any) -> None: ...


def four(item: int) -> dict[str, Any]:
    """Two at once, a third that waits for both, a fourth that waits for it."""
    first, second = step.submit(item), step.submit(item)
    third = step.submit(first, second)
    return {"first": first, "second": second, "third": third, "fourth": step.submit(third)}


runner: Any = ThreadPoolTaskRunner(max_workers=AT_ONCE * STEPS)
process = batch_flow(nothing, name="bench-process", executor="processes", item_concurrency=2)
one_task = batch_flow(each, name="bench-task", item_concurrency=AT_ONCE, task_runner=runner)
group = batch_flow(four, name="bench-group", item_concurrency=AT_ONCE, task_runner=runner)
