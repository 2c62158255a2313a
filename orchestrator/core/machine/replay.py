"""Playing recorded events once more, and comparing what is decided now with what was decided then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.core.machine.events import Command
from orchestrator.core.machine.state import Setup, State
from orchestrator.core.machine.step import step
from orchestrator.core.machine.wire import Recorded
from orchestrator.errors import InvalidTransitionError


@dataclass(frozen=True, slots=True)
class Difference:
    """Where today's machine decides otherwise: from there on, the two are in different states.

    Args:
        now: What it decides today; None when it refuses the event as impossible.
    """

    recorded: Recorded
    now: Sequence[Command] | None

    @property
    def then(self) -> Sequence[Command] | None:
        return self.recorded.commands


class Replay:
    """A machine that is given recorded events, one after the other; nothing but their times is read of any clock.

    Args:
        setup: As it was recorded.
    """

    def __init__(self, setup: Setup) -> None:
        self.state = State(setup)
        self.difference: Difference | None = None

    def play(self, recorded: Recorded) -> Sequence[Command] | None:
        """What is decided now; None when the event is refused. After the first difference nothing is compared."""
        now: Sequence[Command] | None
        try:
            now = step(self.state, recorded.event, recorded.at)
        except InvalidTransitionError:
            now = None
        if self.difference is None and not _same(now, recorded.commands):
            self.difference = Difference(recorded, now)
        return now


def _same(now: Sequence[Command] | None, then: Sequence[Command] | None) -> bool:
    return now is then if now is None or then is None else list(now) == list(then)
