"""All that is known about a batch's stages, as one table. The diagram in the docs is drawn from it.

A row says: in this stage, on this event, the batch may go to one of these stages, and why. An event about an older
attempt is ignored before the table is asked; a pair without a row is a bug of ours (`InvalidTransitionError`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from orchestrator.core.machine import events as ev


class Stage(StrEnum):
    """Where a batch is, from the parent's view."""

    WAITING = "waiting"  # its current attempt was not asked for yet
    SUBMITTING = "submitting"  # a creation was asked for; no answer yet
    UNKNOWN = "unknown"  # the answer to a creation was lost
    IN_FLIGHT = "in flight"  # the child run exists; its end was not read
    STOPPING = "stopping"  # its cancellation was asked for; its end was not read
    CLOSING = "closing"  # it is over; the ledger is being read
    SETTLED = "settled"  # final


HOLDS_A_PLACE = frozenset({Stage.SUBMITTING, Stage.UNKNOWN, Stage.IN_FLIGHT, Stage.STOPPING, Stage.CLOSING})
"""The stages that count against `max_in_flight`."""


@dataclass(frozen=True, slots=True)
class Row:
    """Where an event may lead, and why it can happen at all."""

    to: frozenset[Stage]
    why: str


def _row(why: str, *to: Stage) -> Row:
    return Row(frozenset(to), why)


_W, _S, _U, _F, _X, _C, _Z = Stage

TABLE: dict[tuple[Stage, type], Row] = {
    (_W, ev.Restored): _row("a parent that takes over reads what became of an attempt", _W, _Z),
    (_W, ev.Submitted): _row("a parent that takes over adopts a child it finds by key", _F, _C),
    #
    (_S, ev.Submitted): _row("Prefect created it, or had done so before (same key)", _F, _X, _C),
    (_S, ev.SubmissionDeferred): _row("Prefect cannot be reached: nothing was created, try later", _W, _Z),
    (_S, ev.SubmissionLost): _row("the answer was lost: 503, reset or timeout after the request was sent", _U),
    (_S, ev.SubmissionRefused): _row("deployment deleted, parameters refused", _Z),
    #
    (_U, ev.Submitted): _row("it does exist", _F, _X, _C),
    (_U, ev.SubmissionAbsent): _row("not there, but a creation in progress may still commit: ask again", _U),
    (_U, ev.SubmissionLost): _row("asked again under the same key, and lost again", _U),
    (_U, ev.SubmissionDeferred): _row("Prefect cannot be reached: still unknown", _U),
    (_U, ev.SubmissionRefused): _row("asked again and refused", _Z),
    #
    (_F, ev.Submitted): _row("two answers to one creation", _F, _C),
    (_F, ev.Recalled): _row("a parent that takes over finds that its predecessor wanted it to end", _X),
    (_F, ev.RunSeen): _row("news of a child; a terminal state that was read ends it", _F, _C),
    (_F, ev.RunVanished): _row("its record was deleted: a wait would never return", _C),
    (_F, ev.FellSilent): _row("its process died with its worker, and nobody will ever say so", _F, _X),
    #
    (_X, ev.Submitted): _row("two answers to one creation", _X, _C),
    (_X, ev.RunSeen): _row("it ends as cancelled, or by itself before the request reached it", _X, _C),
    (_X, ev.RunVanished): _row("its record was deleted while it was being cancelled", _C),
    (_X, ev.FellSilent): _row("it is being cancelled already", _X),
    #
    (_C, ev.Submitted): _row("an answer that comes after the end was read", _C),
    (_C, ev.SubmissionAbsent): _row("an answer that comes after the cancel deadline", _C),
    (_C, ev.SubmissionLost): _row("an answer that comes after the cancel deadline", _C),
    (_C, ev.SubmissionDeferred): _row("an answer that comes after the cancel deadline", _C),
    (_C, ev.SubmissionRefused): _row("an answer that comes after the cancel deadline", _C),
    (_C, ev.Recalled): _row("a parent that takes over finds it over, and that its predecessor wanted that", _C),
    (_C, ev.RunSeen): _row("repeated news, or a run that Prefect let leave a terminal state: it is revoked", _C),
    (_C, ev.RunVanished): _row("its record was deleted after its end was read", _C),
    (_C, ev.FellSilent): _row("a process that is over says nothing", _C),
    (_C, ev.Closed): _row("the ledger was read: settled, or lost and to be tried again", _W, _Z),
    (_C, ev.CloseFailed): _row("the job folder cannot be read: settled with what is known", _Z),
    #
    (_Z, ev.Submitted): _row("a creation of unknown outcome shows up after the end: it is cancelled", _Z),
    (_Z, ev.SubmissionAbsent): _row("late answer", _Z),
    (_Z, ev.SubmissionLost): _row("late answer", _Z),
    (_Z, ev.SubmissionDeferred): _row("late answer", _Z),
    (_Z, ev.SubmissionRefused): _row("late answer", _Z),
    (_Z, ev.RunSeen): _row("late news", _Z),
    (_Z, ev.RunVanished): _row("late news", _Z),
    (_Z, ev.FellSilent): _row("late news", _Z),
    (_Z, ev.Closed): _row("read twice; or at last, after its job folder had been away", _Z),
    (_Z, ev.CloseFailed): _row("late answer", _Z),
}

TIMED: dict[Stage, Row] = {
    # What only the clock, the kill switch or a stop does; no event about the batch itself is needed.
    _W: _row("its turn came; or the job stops", _S, _Z),
    _U: _row("the cancel deadline passed", _C),
    _S: _row("the cancel deadline passed", _C),
    _F: _row("the job stops; or start or batch timeout passed; or the cancel deadline passed", _X, _C),
    _X: _row("it had begun to run and was spared; or the cancel deadline passed", _F, _C),
}


def diagram() -> str:
    """The table as a Mermaid state diagram, for the architecture page."""
    edges: dict[tuple[Stage, Stage], list[str]] = {}
    for (stage, event), row in TABLE.items():
        for to in row.to:
            if to is not stage:
                edges.setdefault((stage, to), []).append(event.__name__)
    for stage, row in TIMED.items():
        for to in row.to:
            edges.setdefault((stage, to), []).append("stop or time")
    names = {s: s.value.replace(" ", "_") for s in Stage}
    order = list(Stage)
    lines = ["stateDiagram-v2", f"    [*] --> {names[_W]}"]
    for (a, b), labels in sorted(edges.items(), key=lambda e: (order.index(e[0][0]), order.index(e[0][1]))):
        lines.append(f"    {names[a]} --> {names[b]}: {', '.join(sorted(set(labels)))}")
    return "\n".join([*lines, f"    {names[_Z]} --> [*]"])
