"""One job of 10,000 batches on PostgreSQL and Redis: does a batch cost the same at the end as at the beginning?

Server, database, parent and job folder are real; child runs are simulated (`standin.py`). The second tenth of the
batches is held against the last but one, so that neither the start nor the end of the job is in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.standing import Job, Standing, standing, watch
from benchmarks.table import Row

BATCHES, PER_BATCH, AT_ONCE, SECONDS = 10_000, 10, 100, 12.0
MEMORY_MB = 300


@dataclass(frozen=True)
class Tenth:
    """What a tenth of the batches cost, per batch; `mb` is the parent's memory at its end."""

    parent: float
    requests: float
    server: float
    databases: float
    seconds: float
    mb: float


def tenth(job: Job, batches: int, begin: float, end: float) -> Tenth:
    """Between two shares of the batches, by the samples nearest to them."""
    first, last = (min(job.samples, key=lambda s, share=share: abs(s["settled"] - share * batches))
                   for share in (begin, end))  # fmt: skip
    count = last["settled"] - first["settled"]
    if count <= 0:
        raise RuntimeError(f"too few samples between {begin:.0%} and {end:.0%}")

    def each(name: str) -> float:
        return (last[name] - first[name]) / count

    return Tenth(each("cpu"), each("requests"), each("server"), each("databases"), each("at"), last["mb"])


def rows(batches: int = BATCHES, *, at_once: int = AT_ONCE, seconds: float = SECONDS, reads: bool = False) -> list[Row]:
    with standing("PostgreSQL") as where:
        watch(where, batches=4, per_batch=1, at_once=4, seconds=0.1)
        return measure(where, batches, at_once, seconds, reads=reads)


def measure(where: Standing, batches: int, at_once: int, seconds: float, *, reads: bool) -> list[Row]:
    job = watch(
        where,
        batches=batches,
        per_batch=PER_BATCH,
        at_once=at_once,
        seconds=seconds,
        reads=reads,
        deadline_seconds=4 * 3600,
    )
    end = job.end
    lost = end["total"] - end["succeeded"]
    early, late = tenth(job, batches, 0.1, 0.2), tenth(job, batches, 0.8, 0.9)
    name = f"{batches:,} batches, {at_once} in flight"

    def line(what: str, ours: float, other: float, wanted: float | None = None) -> Row:
        return Row(
            "postgres_scale", f"{name}: {what}, ninth tenth", ours, other, "second tenth",
            ours / other if other else None,
            wanted=f"ratio <= {wanted:g}" if wanted else "", holds=ours <= wanted * other if wanted else None,
        )  # fmt: skip

    return [
        Row("postgres_scale", f"{name}: items lost", lost, wanted="0", holds=lost == 0 and len(job.runs) == batches),
        Row("postgres_scale", f"{name}: most unsettled at once", end["most"], at_once, "allowed", wanted="<= allowed",
            holds=end["most"] <= at_once),
        Row("postgres_scale", f"{name}: batches per second", batches / end["wall"]),
        Row("postgres_scale", f"{name}: answers 503", job.busy),
        line("CPU ms of the parent per batch", milli(late.parent), milli(early.parent), 1.25),
        line("requests of the parent per batch", late.requests, early.requests, 1.25),
        line("CPU ms of the server per batch", milli(late.server), milli(early.server), 1.25),
        line("CPU ms of the databases per batch", milli(late.databases), milli(early.databases)),
        line("memory of the parent, MB", late.mb, early.mb),
        Row("postgres_scale", f"{name}: most memory of the parent, MB", max(s["mb"] for s in job.samples),
            wanted=f"< {MEMORY_MB}", holds=max(s["mb"] for s in job.samples) < MEMORY_MB),
    ]  # fmt: skip


def milli(seconds: float) -> float:
    return seconds * 1000
