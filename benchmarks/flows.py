"""What the benchmarks deploy: flows that do nothing, so that everything measured is what it takes to run them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

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


def drill(item: dict[str, Any], *, gate: str, fails: bool = False) -> float:
    """An item of the stop drill; the first of all that finds the gate open fails, if failing is wanted."""
    started = time.time()
    if fails and Path(gate).exists() and _is_first(Path(f"{gate}.failed")):
        raise ValueError("the drill's failure")
    time.sleep(item["seconds"])
    return started


def _is_first(marker: Path) -> bool:
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


noop = batch_flow(nothing, name="bench-noop")
short = batch_flow(moment, name="bench-short")
drilled = batch_flow(drill, name="bench-drill")
