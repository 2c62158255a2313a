"""A job as people watch it: one snapshot, made from the machine's state whenever somebody looks."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

from orchestrator.core.machine import State
from orchestrator.core.model import BatchOutcome, Failure, Phase, StopMode
from orchestrator.core.report import ErrorCluster, error_clusters


@dataclass(frozen=True, slots=True)
class JobView:
    """A snapshot of a running job.

    Args:
        seconds: Since this parent began.
        rate: Items settled per second over the last minute; None before there is any.
        eta_seconds: At that rate; None when it cannot be told.
        in_flight: Children by phase in Prefect's words ("Running", "Pending", ...).
        waiting_for: Why nothing moves, when something outside holds the job up.
        stopping: The reason of the stop in force; None while the job goes on.
        paused: Who paused it, since when and why; None while it is not paused.
        changes: What operators changed while it ran, one line each, the latest last.
    """

    job_id: str
    total: int
    succeeded: int
    failed: int
    unknown: int
    not_started: int
    batches_total: int
    batches_settled: int
    batches_by_outcome: dict[str, int]
    in_flight: dict[str, int]
    seconds: float
    rate: float | None = None
    eta_seconds: float | None = None
    first_failure: Failure | None = None
    errors: tuple[ErrorCluster, ...] = ()
    waiting_for: str | None = None
    stopping: str | None = None
    draining: bool = False
    paused: str | None = None
    changes: tuple[str, ...] = ()

    @property
    def settled(self) -> int:
        return self.succeeded + self.failed + self.unknown + self.not_started


class Rate:
    """Items per second over the last minute, from readings of a growing count."""

    def __init__(self, span_seconds: float = 60.0) -> None:
        self._span = span_seconds
        self._readings: deque[tuple[float, int]] = deque()

    def read(self, at: float, count: int) -> float | None:
        """Take a reading; the rate so far, None before two seconds of readings."""
        self._readings.append((at, count))
        while at - self._readings[0][0] > self._span:
            self._readings.popleft()
        first_at, first = self._readings[0]
        # Counts may go back: a child died before its last outcomes were written.
        return max(0.0, (count - first) / (at - first_at)) if at - first_at >= 2 else None


def look(state: State, job_id: str, rate: float | None = None, waiting_for: str | None = None) -> JobView:
    """The snapshot of this moment."""
    tally = state.tally
    left = tally.total - tally.settled - tally.not_started
    flying: Counter[str] = Counter()
    for index in state.active:
        batch = state.batches[index]
        flying[batch.phase.value.title() if batch.phase else "Submitting"] += 1
    return JobView(
        job_id=job_id,
        total=tally.total,
        succeeded=tally.succeeded,
        failed=tally.failed,
        unknown=tally.unknown,
        not_started=tally.not_started,
        batches_total=len(state.batches),
        batches_settled=tally.settled_batches,
        batches_by_outcome={o.value: tally.outcomes[o] for o in BatchOutcome if tally.outcomes[o]},
        in_flight=dict(flying),
        seconds=tally.now - tally.started,
        rate=rate,
        eta_seconds=left / rate if rate and state.stop is None and not state.paused else None,
        first_failure=tally.first_failure,
        errors=error_clusters(state)[:5],
        waiting_for=waiting_for,
        stopping=state.stop.reason if state.stop else None,
        draining=state.stop is not None and state.stop.mode is StopMode.DRAIN,
        paused=(state.standing.paused_by or "by somebody") if state.paused else None,
        changes=tuple(state.standing.changes),
    )


def nothing_runs(state: State) -> bool:
    """Children are in flight and none of them gets to run: something outside holds them up."""
    phases = {state.batches[i].phase for i in state.active}
    return bool(phases) and phases <= {Phase.SCHEDULED, Phase.PENDING, Phase.PAUSED}
