"""The flow whose runs meet the faults. Its items write their own account, in files that the job knows nothing of.

An account line is written before an item does anything and after it did everything, each by one write, with the wall
clock (to compare with the server) and the monotonic clock (which all processes of one machine share on Linux).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from prefect.runtime import flow_run

from orchestrator import ItemContext, batch_flow

ACCOUNT = "account.jsonl"


def note(trace: str, context: ItemContext, event: str, outcome: str | None = None) -> None:
    """One line in one write: lines of many processes do not mix."""
    facts = {
        "event": event, "index": context.index, "batch": context.batch, "attempt": context.attempt, "pid": os.getpid(),
        "run": str(flow_run.id), "at": time.time(), "monotonic": time.monotonic(), "outcome": outcome,
    }  # fmt: skip
    handle = os.open(Path(trace) / ACCOUNT, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, (json.dumps(facts) + "\n").encode())
    finally:
        os.close(handle)


@batch_flow(name="chaos-work")
def work(item: dict[str, Any], context: ItemContext, *, trace: str) -> Any:
    """Works on one item: takes its time, then fails if it was made to."""
    note(trace, context, "start")
    time.sleep(item.get("seconds", 0))
    if item.get("fail"):
        note(trace, context, "end", "failed")
        raise ValueError(f"item {item['n']} is bad")
    note(trace, context, "end", "succeeded")
    return item["n"]
