"""One simulated run: what its child is given, what the server keeps of it, and how long things take."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.core.model import BatchReference, Phase, Progress, RunId
from orchestrator.engine.faults import Fate
from orchestrator.engine.gateway import Submission


class Publisher(Protocol):
    """Takes what a child reports."""

    def publish(self, record: Record, progress: Progress) -> None: ...


@dataclass(frozen=True, slots=True)
class Latencies:
    """Seconds the parts of the engine take; the defaults are those of a process pool on a small machine.

    Attributes:
        request: One API request.
        pickup: From Scheduled to Pending, when a slot is free (the worker's poll).
        start: From Pending to Running.
        news: From a run's end to a waiting listener's knowing.
        cancel: From CANCELLING to the child's hearing of it.
        kill_grace: From there to the kill of a child that listens and does not end.
        cancelling_timeout: After which the server itself makes CANCELLING into CANCELLED.
    """

    request: float = 0.01
    pickup: float = 0.5
    start: float = 1.5
    news: float = 0.3
    cancel: float = 3.3
    kill_grace: float = 30.0
    cancelling_timeout: float = 300.0


TYPICAL = Latencies()
INSTANT = Latencies(request=0.0, pickup=0.0, start=0.0, news=0.0, cancel=0.0, kill_grace=0.0)


class SimulatedRun:
    """What a simulated child is given: its submission, and the ways in which it may speak.

    Attributes:
        message: Set it for a message of the state the child ends in.
        state_name: Set it for a name of that state, e.g. "CompletedWithFailures".
    """

    __slots__ = ("_cancelled", "_engine", "_record", "message", "state_name", "submission")

    def __init__(self, engine: Publisher, record: Record, submission: Submission) -> None:
        self._engine, self._record, self.submission = engine, record, submission
        self._cancelled: asyncio.Event | None = None
        self.message: str | None = None
        self.state_name: str | None = None

    @property
    def id(self) -> RunId:
        return self._record.id

    @property
    def parameters(self) -> Mapping[str, Any]:
        return self.submission.parameters

    @property
    def reference(self) -> BatchReference:
        """The batch this child was given."""
        return BatchReference(**self.submission.parameters["batch"])

    @property
    def cancel_requested(self) -> asyncio.Event:
        """Set when the child hears that it shall stop. Whoever looks at it gets the grace; others end at once."""
        if self._cancelled is None:
            self._cancelled = asyncio.Event()
        return self._cancelled

    def hear_cancel(self) -> bool:
        """Tell the child to stop (the engine's business); False when it does not listen."""
        if self._cancelled is None:
            return False
        self._cancelled.set()
        return True

    def report(self, progress: Progress) -> None:
        """Publish the child's progress, as its progress artifact would."""
        self._engine.publish(self._record, progress)


Child = Callable[[SimulatedRun], Awaitable[Phase]]


class Record:
    """One run as the server has it; small, because a benchmark holds 50,000 of them."""

    __slots__ = (
        "deployment_id", "fate", "flow_id", "held_back", "id", "key", "message", "name", "phase", "progress", "repeat",
        "run", "since", "started", "state_name", "submission", "task", "waiters",
    )  # fmt: skip

    def __init__(self, run_id: RunId, submission: Submission, fate: Fate, now: float) -> None:
        self.id, self.name, self.key = run_id, submission.name, submission.key
        self.deployment_id, self.flow_id = submission.deployment.id, submission.deployment.flow_id
        self.fate = fate
        self.phase, self.state_name, self.since = Phase.SCHEDULED, "Scheduled", now
        self.message: str | None = None
        self.started = False
        self.submission: Submission | None = submission
        self.run: SimulatedRun | None = None
        self.task: asyncio.Task[None] | None = None
        self.progress: Progress | None = None
        self.held_back: Progress | None = None
        self.repeat = False
        self.waiters: list[asyncio.Future[None]] | None = None
