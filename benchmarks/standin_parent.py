"""The parent of a job over simulated child runs: `python -m benchmarks.standin_parent ITEMS PER_BATCH AT_ONCE SECONDS`.

Prints a line of JSON about once a second: how many batches were settled, and what this process and its requests had
cost by then; the last line is the end, with the time (seconds since 1970) at which each batch's ledger had been read.
Items are seconds, drawn evenly around SECONDS / PER_BATCH, the same each time.
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

import psutil


def durations(count: int, mean: float) -> list[float]:
    """Seconds from half the mean to one and a half of it."""
    chance = random.Random(2025)
    return [round(chance.uniform(0.5, 1.5) * mean, 3) for _ in range(count)]


def main(count: int, per_batch: int, at_once: int, seconds: float, storage: str, job_id: str) -> None:
    from orchestrator import JobView, orchestrate_sync
    from orchestrator.core.machine import events as ev
    from orchestrator.engine.parent import PrefectGateway
    from orchestrator.reactor import Recorder

    # To read what the job's door counts while it runs, and when batches are closed.
    doors: list[PrefectGateway] = []
    closed: dict[int, float] = {}
    make, take = PrefectGateway.__init__, Recorder.take

    def watched(door: PrefectGateway, *args: Any, **kwargs: Any) -> None:
        make(door, *args, **kwargs)
        doors.append(door)

    def taken(recorder: Recorder, at: float, event: ev.Event, commands: Any) -> None:
        if isinstance(event, ev.Closed):
            closed[event.batch] = time.time()
        take(recorder, at, event, commands)

    PrefectGateway.__init__, Recorder.take = watched, taken  # type: ignore[method-assign]
    me, began = psutil.Process(), time.monotonic()

    def say(settled: int, **more: Any) -> None:
        facts = {"settled": settled, "at": time.monotonic() - began, "cpu": time.process_time(),
                 "mb": me.memory_info().rss / (1 << 20), "requests": sum(door.requests for door in doors)}  # fmt: skip
        print(json.dumps(facts | more), flush=True)

    def look(view: JobView) -> None:
        say(view.batches_settled)

    say(0)
    report = orchestrate_sync(
        "bench-short/default", durations(count, seconds / per_batch), batch_size=per_batch, max_in_flight=at_once,
        kill_switch=None, storage=storage, job_id=job_id, on_progress=look, on_failure="return",
    )  # fmt: skip
    n, b = report.items, report.batches
    say(
        b.total - b.not_submitted, over=True, verdict=report.verdict.value, wall=report.seconds, total=n.total,
        succeeded=n.succeeded, failed=n.failed, unknown=n.unknown, not_started=n.not_started,
        completed=b.completed, attempts_lost=b.total - b.completed, most=report.max_in_flight_seen,
        closed=closed,
    )  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), sys.argv[5], sys.argv[6])
