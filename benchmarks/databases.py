"""SQLite against PostgreSQL with Redis: what 8, 32 and 100 child runs in flight do to a server, and it to them.

The server is real, child runs are simulated (`standin.py`) and only sleep, so that two cores are enough for a hundred.
Each width meets both databases, one after the other, on a fresh stack.

* *created per second*: the first window of child runs, from the first's creation to the last's.
* *the batch is settled*: from a child's end, as the server dates it, until its parent heard of it and read its ledger.
* *a freed place is filled*: from a child's end to the creation of the one that takes its place, as the server dates
  both: hearing of the end, reading the ledger and creating the next.
"""

from __future__ import annotations

import datetime
import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.standing import Job, Standing, standing, watch
from benchmarks.table import Row

SQLITE, POSTGRES = "SQLite", "PostgreSQL"
WIDTHS = ((8, 80, 5.0), (32, 160, 10.0), (100, 300, 30.0))
"""(most in flight, child runs, seconds of each on average)"""


@dataclass(frozen=True)
class Found:
    """One width on one database."""

    rate: float
    settle: float
    settle_late: float
    refill: float
    refill_late: float
    busy: int
    server: float
    databases: float
    parent: float
    wall: float


def measure(where: Standing, at_once: int, children: int, seconds: float) -> Found:
    # Once before the clock: what a server and a database do for the first time.
    watch(where, batches=4, per_batch=1, at_once=4, seconds=0.1)
    job = watch(where, batches=children, per_batch=1, at_once=at_once, seconds=seconds)
    _whole(job, children)
    created = sorted(_seconds(run["created"]) for run in job.runs)
    settled, waited = sorted(delays(job)), sorted(refills(job.runs, at_once))
    first, last = job.samples[0], job.samples[-1]
    return Found(
        rate=(at_once - 1) / (created[at_once - 1] - created[0]),
        settle=statistics.median(settled), settle_late=settled[int(len(settled) * 0.95)],
        refill=statistics.median(waited), refill_late=waited[int(len(waited) * 0.95)],
        busy=job.busy, server=(last["server"] - first["server"]) / children,
        databases=(last["databases"] - first["databases"]) / children, parent=last["cpu"] / children,
        wall=job.end["wall"] / (children * seconds / at_once),
    )  # fmt: skip


def _whole(job: Job, children: int) -> None:
    """A measurement of a job that lost something measures nothing."""
    if (job.end["completed"], len(job.runs), job.worker["failed"]) != (children, children, 0):
        raise RuntimeError(f"{children} child runs were wanted: {job.end}, {job.worker}, {len(job.runs)} runs")


def delays(job: Job) -> list[float]:
    """Seconds from each child run's end to its batch's ledger having been read."""
    ended = {run["idempotency_key"].split("/")[2]: _seconds(run["end_time"]) for run in job.runs}
    return [at - ended[batch] for batch, at in job.end["closed"].items()]


def refills(runs: list[dict[str, Any]], at_once: int) -> list[float]:
    """Seconds from the n-th end to the creation of the n-th child run after the first window."""
    created = sorted(_seconds(run["created"]) for run in runs)
    ended = sorted(_seconds(run["end_time"]) for run in runs)
    return [later - end for end, later in zip(ended, created[at_once:], strict=False)]


def _seconds(text: str) -> float:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def rows(widths: tuple[tuple[int, int, float], ...] = WIDTHS) -> list[Row]:
    found = []
    for at_once, children, seconds in widths:
        sides = {}
        for database in (SQLITE, POSTGRES):
            with standing(database) as where:
                sides[database] = measure(where, at_once, children, seconds)
        found += compared(at_once, sides[POSTGRES], sides[SQLITE])
    return found


def compared(at_once: int, mine: Found, theirs: Found) -> list[Row]:
    """The rows of one width."""

    def line(what: str, ours: float, other: float) -> Row:
        return Row("databases", f"{at_once} in flight: {what}", ours, other, SQLITE, ours / other if other else None)

    return [
        line("child runs created per second, the first window", mine.rate, theirs.rate),
        line("answers 503", mine.busy, theirs.busy),
        line("seconds from a child run's end to its batch settled: median", mine.settle, theirs.settle),
        line("seconds from a child run's end to its batch settled: 95 of 100", mine.settle_late, theirs.settle_late),
        line("seconds until a freed place is filled: median", mine.refill, theirs.refill),
        line("seconds until a freed place is filled: 95 of 100", mine.refill_late, theirs.refill_late),
        line("the job's time, ideal = 1", mine.wall, theirs.wall),
        line("CPU seconds of the server, per child run", mine.server, theirs.server),
        line("CPU seconds of its databases, per child run", mine.databases, theirs.databases),
        line("CPU seconds of the parent, per child run", mine.parent, theirs.parent),
    ]
