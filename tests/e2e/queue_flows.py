"""A batch flow for the queue's tests: says when an id begins, and waits until it may go on."""

from __future__ import annotations

import time
from pathlib import Path

from orchestrator import batch_flow
from tests.integration.job_flows import note

GATE_SECONDS = 120.0


@batch_flow(name="queue-work", item_concurrency=2)
def queue_work(item: str, *, trace: str) -> str:
    """Ids from the middle on wait for a file; every tenth fails."""
    note(trace, id=item)
    number = int(item.removeprefix("id-"))
    end = time.monotonic() + GATE_SECONDS
    while number >= 12 and not (Path(trace) / "go").exists() and time.monotonic() < end:
        time.sleep(0.05)
    if number % 10 == 7:
        raise ValueError(f"{item} is no good")
    return item
