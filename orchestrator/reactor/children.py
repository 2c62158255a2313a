"""Which child runs a person should look at, and how long they took: what the page links to."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import chain, islice

from orchestrator.core.machine import State
from orchestrator.core.machine import events as ev
from orchestrator.core.model import BatchOutcome, Phase, RunId

_BAD = {BatchOutcome.FAILED: "failed", BatchOutcome.CRASHED: "crashed", BatchOutcome.UNCONFIRMED: "not seen to end"}
_SLOW = 3


@dataclass(frozen=True, slots=True)
class Child:
    """A child run worth a look.

    Args:
        batch: 0-based.
        what: Why it is named, in a few words.
    """

    batch: int
    attempt: int
    run: RunId
    what: str
    seconds: float | None = None


class Watched:
    """How long child runs ran, from when they were first seen Running; seconds of the job's clock."""

    def __init__(self) -> None:
        self._since: dict[tuple[int, int], float] = {}
        self._slowest: list[tuple[float, int, int, RunId]] = []
        self._new: list[int] = []  # settled since somebody last looked
        self._bad: list[Child] = []  # the first that settled with failures

    def see(self, event: ev.Event, at: float) -> None:
        """A child run was seen Running."""
        if isinstance(event, ev.RunSeen) and event.phase is Phase.RUNNING:
            self._since.setdefault((event.batch, event.attempt), at)

    def settle(self, batch: int, attempt: int, run: RunId | None, at: float) -> None:
        """A batch is over."""
        self._new.append(batch)
        since = self._since.pop((batch, attempt), None)
        if since is not None and run is not None:
            self._slowest = heapq.nlargest(_SLOW, [*self._slowest, (at - since, batch, attempt, run)])

    def worth_a_look(self, state: State, most: int = 10) -> list[Child]:
        """Child runs with failures, at most `most`, and the slowest of those that ended well or still run."""
        # Looked at as they settle: a page is shown every few seconds, and a job may have very many batches.
        for index in self._new:
            if len(self._bad) < most and (child := _bad(state, index)) is not None:
                self._bad.append(child)
        self._new.clear()
        running = (child for index in sorted(state.active) if (child := _bad(state, index)) is not None)
        found = {child.batch: child for child in islice(chain(self._bad, running), most)}
        for seconds, index, attempt, run in self._slowest:
            found.setdefault(index, Child(index, attempt, run, "among the slowest", seconds))
        for index, attempt, since in self._longest(state):
            batch = state.batches[index]
            if batch.run is not None and batch.attempt == attempt:
                found.setdefault(index, Child(index, attempt, batch.run, "running", state.tally.now - since))
        return list(found.values())

    def _longest(self, state: State) -> list[tuple[int, int, float]]:
        running = [(at, batch, attempt) for (batch, attempt), at in self._since.items() if batch in state.active]
        return [(batch, attempt, at) for at, batch, attempt in heapq.nsmallest(_SLOW, running)]


def _bad(state: State, index: int) -> Child | None:
    """The batch's child run, when it has failures or ended badly."""
    batch = state.batches[index]
    failed = batch.counts.failed if batch.counts else 0
    words = [_BAD[batch.outcome]] if batch.outcome in _BAD else []
    if failed:
        words.append(f"{failed:,} item{'s' if failed > 1 else ''} failed")
    return Child(index, batch.attempt, batch.run, ", ".join(words)) if words and batch.run is not None else None
