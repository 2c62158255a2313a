"""What the benchmarks deploy: flows that do nothing, so that everything measured is what it takes to run them."""

from __future__ import annotations

import time

from prefect import flow

from orchestrator import batch_flow


@flow(name="bench-plain")
def plain(items: list[int]) -> None:
    """A child as anybody would write it."""


def nothing(item: int) -> None:
    """An item without work."""


def moment(item: float) -> float:
    """An item that takes so many seconds; its result is when it started, by this machine's clock."""
    started = time.time()
    time.sleep(item)
    return started


noop = batch_flow(nothing, name="bench-noop")
short = batch_flow(moment, name="bench-short")
