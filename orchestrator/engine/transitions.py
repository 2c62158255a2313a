"""What Prefect's server answers when a state of a flow run is proposed: the whole table, as measured.

Asked without force. Every row is also asked of a real server by the contract suite, so an upgrade of Prefect says
what it changed. Source: Prefect 3.8.8 through the API; server/orchestration/core_policy.py.
"""

from __future__ import annotations

from enum import StrEnum

from orchestrator.core.model import Phase


class Answer(StrEnum):
    """Prefect's SetStateStatus."""

    ACCEPT = "ACCEPT"
    REJECT = "REJECT"  # the server put the run into another state, or left it
    ABORT = "ABORT"  # nothing changed: the run was where nothing leads there


_ORDER = (
    Phase.SCHEDULED,
    Phase.PENDING,
    Phase.RUNNING,
    Phase.COMPLETED,
    Phase.FAILED,
    Phase.CANCELLED,
    Phase.CRASHED,
    Phase.PAUSED,
    Phase.CANCELLING,
)
# One letter per proposed phase, in the order above: a(ccept), r(eject), x (abort), c (reject, and cancelled at once).
_ROWS = {
    Phase.SCHEDULED: "aaaaaaarc",
    Phase.PENDING: "axaaaaara",
    Phase.RUNNING: "axaaaaaaa",
    Phase.COMPLETED: "aaaaaaxxx",  # of a run without a persisted result
    Phase.FAILED: "aaaaaaxxx",
    Phase.CANCELLED: "axaaaaxxx",  # final is not for ever: RUNNING is accepted from every final phase
    Phase.CRASHED: "aaaaaaxxx",
    Phase.PAUSED: "araaaaara",
    Phase.CANCELLING: "rrrrrarrr",
}
_ANSWERS = {"a": Answer.ACCEPT, "r": Answer.REJECT, "c": Answer.REJECT, "x": Answer.ABORT}


def answer(now: Phase, proposed: Phase) -> tuple[Answer, Phase]:
    """The server's answer, and the phase the run is in afterwards."""
    letter = _ROWS[now][_ORDER.index(proposed)]
    if letter == "a":
        return Answer.ACCEPT, proposed
    return _ANSWERS[letter], Phase.CANCELLED if letter == "c" else now
