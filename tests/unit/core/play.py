"""A machine to play events to: short words for the unit tests of `core/machine`."""

from __future__ import annotations

from typing import Any

from orchestrator.core.killswitch import parse
from orchestrator.core.machine import Setup, Stage, State, step
from orchestrator.core.machine import events as ev
from orchestrator.core.model import (
    Counts,
    EndReason,
    Failure,
    Phase,
    Progress,
    Reading,
    RunId,
    StopCause,
    StopMode,
    StopRecord,
)


class Play:
    """One job: `play(event)` gives the commands; the clock moves only when told to.

    Args:
        counts: Items per batch.
        started: False leaves the job before `Started`, as a parent that takes over finds it.
        setup: Further fields of `Setup`; switches as text.
    """

    def __init__(self, *counts: int, started: bool = True, **setup: Any) -> None:
        for name in ("kill_switch", "enough_when"):
            if isinstance(setup.get(name), str):
                setup[name] = parse(setup[name], field=name)
        self.setup = Setup(counts=list(counts), **{"max_in_flight": 2, **setup})
        self.state = State(self.setup)
        self.now = 0.0
        self.said: list[ev.Command] = []
        if started:
            self.play(ev.Started())

    def play(self, *events: ev.Event) -> list[ev.Command]:
        """Commands of these events together."""
        said: list[ev.Command] = []
        for event in events:
            said += step(self.state, event, self.now)
        self.said += said
        return said

    def wait(self, seconds: float) -> list[ev.Command]:
        """Let time pass, and tell."""
        self.now += seconds
        return self.play(ev.Ticked())

    def stage(self, batch: int = 0) -> Stage:
        return self.state.batches[batch].stage

    # -- the usual events

    def submitted(self, batch: int = 0, phase: Phase = Phase.SCHEDULED, attempt: int = 0) -> list[ev.Command]:
        return self.play(ev.Submitted(batch, attempt, run_of(batch, attempt), phase))

    def seen(self, phase: Phase, batch: int = 0, attempt: int = 0) -> list[ev.Command]:
        return self.play(ev.RunSeen(batch, attempt, phase, state_name=phase.value.title()))

    def closed(self, reading: Reading, batch: int = 0, attempt: int = 0) -> list[ev.Command]:
        return self.play(ev.Closed(batch, attempt, reading))

    def ends(self, reading: Reading, batch: int = 0, attempt: int = 0, phase: Phase = Phase.COMPLETED):
        """The child's end is read, then its ledger."""
        return [*self.seen(phase, batch, attempt), *self.closed(reading, batch, attempt)]

    def progress(self, sequence: int, counts: Counts, batch: int = 0, attempt: int = 0) -> list[ev.Command]:
        return self.play(ev.Progressed(Progress(batch, attempt, sequence, counts)))

    def stop(self, mode: StopMode = StopMode.CANCEL, cause: StopCause = StopCause.REQUESTED, reason: str = "no more"):
        return self.play(ev.StopRequested(StopRecord(mode, cause, reason, "a person")))


def run_of(batch: int, attempt: int = 0) -> RunId:
    return RunId(f"run-{batch}-{attempt}")


def done(succeeded: int, failed: int = 0, *, reason: EndReason = EndReason.COMPLETED, left: int = 0) -> Reading:
    """The reading of a child that wrote its end; `left` items were not started."""
    first = Failure(0, "0", "ValueError", "no") if failed else None
    counts = Counts(succeeded, failed, failed, {"ValueError": failed} if failed else {}, first)
    return Reading(counts, 0, left, ended=True, reason=reason)


def lost(succeeded: int, unknown: int, not_started: int = 0) -> Reading:
    """The reading of a child that died."""
    return Reading(Counts(succeeded), unknown, not_started, ended=False)


def kinds(commands: list[ev.Command]) -> list[str]:
    return [type(command).__name__ for command in commands]


def outcomes(play: Play) -> list[str | None]:
    return [batch.outcome.value if batch.outcome else None for batch in play.state.batches]
