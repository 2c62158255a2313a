"""How an attempt at a batch ends, in the words that people read in Prefect's UI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.core.killswitch import Switch
from orchestrator.core.model import Counts, EndReason
from orchestrator.errors import OrchestratorError

StateType = Literal["COMPLETED", "FAILED", "CANCELLED", "CRASHED"]


class ItemsFailedError(OrchestratorError):
    """A batch flow that was called with `items` ended as failed; `outcomes` says how each of them ended."""

    def __init__(self, message: str, outcomes: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.outcomes = outcomes


@dataclass(frozen=True, slots=True)
class Ending:
    """The state a run ends in.

    Args:
        type, name, message: Prefect's state type; its name, None for the type's own; one line for people.
        outcomes: One mapping per item, in input order, when the items were given directly; else None.
    """

    type: StateType
    name: str | None
    message: str
    outcomes: list[dict[str, Any]] | None = None


_CANCELLED = {
    EndReason.STOPPED: ("Stopped", "the job was stopped"),
    EndReason.LEASE_LOST: ("LeaseLost", "the parent run gave no sign of life"),
    EndReason.REVOKED: ("Revoked", "another run took this batch over"),
    EndReason.TERMINATED: (None, "the run was terminated"),
}


def sentence(counts: Counts, total: int) -> str:
    """ "98 succeeded, 2 failed of 100 items", with what was not run when there is any."""
    left = total - counts.settled
    parts = [f"{counts.succeeded:,} succeeded"]
    if counts.failed:
        parts.append(f"{counts.failed:,} failed")
    if left:
        parts.append(f"{left:,} not finished")
    return f"{', '.join(parts)} of {total:,} {'item' if total == 1 else 'items'}"


def ending(
    reason: EndReason,
    counts: Counts,
    total: int,
    *,
    why: str | None = None,
    fail_run_when: Switch | None = None,
    outcomes: list[dict[str, Any]] | None = None,
) -> Ending:
    """The state for a reason and counts, as design 5.6 has it.

    Args:
        why: What to say of the reason instead of its usual words (a stop's own reason).
        fail_run_when: Makes a run that did all its items Failed; None: when there were items and none succeeded.
    """
    said = sentence(counts, total)
    if reason is EndReason.COMPLETED:
        if fail_run_when is None:
            clause = "no item succeeded" if total and not counts.succeeded else None
        else:
            clause = fail_run_when.clause(BatchReadings(counts, total))
        if clause is not None:
            return Ending("FAILED", None, f"{said} ({clause})", outcomes)
        return Ending("COMPLETED", "CompletedWithFailures" if counts.failed else None, said, outcomes)
    if reason is EndReason.STUCK:
        return Ending("CRASHED", None, f"{said}: {why or 'too many items hung beyond their timeout'}", outcomes)
    if reason is EndReason.LEDGER_FAILED:
        return Ending("FAILED", None, f"{said}: {why or 'outcomes could not be written'}", outcomes)
    name, words = _CANCELLED[reason]
    return Ending("CANCELLED", name, f"{said}: {why or words}", outcomes)


class BatchReadings:
    """The numbers of one batch, for `fail_run_when`; what only a whole job has is missing (None)."""

    def __init__(self, counts: Counts, total: int) -> None:
        self._counts, self._total = counts, total

    def number(self, name: str) -> float | None:
        counts = self._counts
        known: dict[str, float | None] = {
            "total": self._total,
            "succeeded": counts.succeeded,
            "failed": counts.failed,
            "settled": counts.settled,
            "unknown": 0,
            "not_started": self._total - counts.settled,
            "failed_rate": counts.failed / counts.settled if counts.settled else None,
            "consecutive_failed": counts.trailing_failures,
        }
        return known.get(name)

    def errors(self, type_name: str) -> int:
        return self._counts.errors.get(type_name, 0)

    def recent_failed_rate(self, n: int) -> float | None:
        return None
