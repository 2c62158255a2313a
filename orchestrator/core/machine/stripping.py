"""A recorded job without what may be confidential, and with the same decisions: to be kept as a test.

Texts that people or their code wrote (error texts, keys, reasons, names of runs and of states of one's own) become
"text 1", "text 2"; child runs become "run-1", "run-2". Numbers, times, the types of errors and the expressions of kill
switches stay: decisions rest on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from orchestrator.core.machine import events as ev
from orchestrator.core.machine.replay import Replay
from orchestrator.core.machine.state import Setup
from orchestrator.core.machine.wire import Recorded
from orchestrator.core.model import Counts, Failure, Reading, StopRecord

STATE_NAMES = frozenset({
    "", "Scheduled", "Late", "Resuming", "AwaitingRetry", "AwaitingConcurrencySlot", "Pending", "Submitting",
    "InfrastructurePending", "Paused", "Suspended", "Running", "Retrying", "Cancelling", "Cancelled", "Completed",
    "Cached", "RolledBack", "Failed", "TimedOut", "Crashed", "Stopped", "Revoked", "Terminated", "Lease Lost",
})  # fmt: skip
"""Names of states that say nothing of anybody's own. Source: prefect server/schemas/states.py, 3.8.8; and ours."""

TEXTS: Mapping[type, tuple[str, ...]] = {
    Failure: ("key", "text"),
    StopRecord: ("reason", "who"),
    ev.SubmissionRefused: ("reason",),
    ev.CloseFailed: ("reason",),
    ev.RunSeen: ("state_name", "message"),
    ev.Restored: ("recalled",),
    ev.Recalled: ("reason",),
    ev.Recall: ("reason",),
    ev.Close: ("how",),
    Reading: ("why",),
    ev.ControlChanged: ("who", "asked", "reason"),
    ev.Settle: ("reason",),
    ev.TryAgain: ("reason",),
}
RUNS: Mapping[type, tuple[str, ...]] = {
    ev.Restored: ("left",),
    ev.Submitted: ("run",),
    ev.Spared: ("runs",),
    ev.Cancel: ("runs",),
    ev.Recall: ("run",),
}
KEPT: Mapping[type, tuple[str, ...]] = {Failure: ("type",), Counts: ("errors",)}
"""With the two above: every field that holds a text; a test compares."""


class Stripping:
    """Strips the events of one parent, given in order.

    Args:
        setup: As it was recorded.
    """

    def __init__(self, setup: Setup) -> None:
        self._then, self._now = Replay(setup), Replay(setup)
        self._texts: dict[str, str] = {}
        self._runs: dict[str, str] = {}

    def strip(self, recorded: Recorded) -> Recorded:
        """The same without texts.

        As long as today's machine decides as was recorded, what it decides about the stripped event stands for what
        was recorded: texts of events come back in the texts of commands. From the first difference on, the recorded
        commands are stripped one by one, and differ in the stripped recording too.
        """
        bare = replace(recorded, event=self._bare(recorded.event))
        self._then.play(recorded)
        decided = self._now.play(bare)
        if self._then.difference is not None:
            commands = recorded.commands
            return replace(bare, commands=None if commands is None else [self._bare(c) for c in commands])
        return replace(bare, commands=decided)

    def _bare(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self._bare, value))
        if not is_dataclass(value) or isinstance(value, type):
            return value
        changes = {f.name: self._bare(getattr(value, f.name)) for f in fields(value)}
        for name in TEXTS.get(type(value), ()):
            changes[name] = self._text(changes[name]) if changes[name] is not None else None
        for name in RUNS.get(type(value), ()):
            runs = changes[name]
            changes[name] = tuple(map(self._run, runs)) if isinstance(runs, tuple) else self._run(runs)
        return replace(value, **changes)

    def _text(self, text: str) -> str:
        return text if text in STATE_NAMES else _named(self._texts, text, "text {}".format)

    def _run(self, run: str) -> str:
        return _named(self._runs, run, "run-{}".format)


def _named(known: dict[str, str], text: str, name: Callable[[int], str]) -> str:
    return known.setdefault(text, name(len(known) + 1))
