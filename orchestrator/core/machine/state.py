"""The machine's memory: one `State` per job, one small `BatchState` per batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.core.killswitch import Switch
from orchestrator.core.machine.controls import Standing
from orchestrator.core.machine.table import HOLDS_A_PLACE, TIMED, Stage
from orchestrator.core.model import BatchOutcome, Counts, Phase, Reading, RunId, StopMode, StopRecord, Verdict
from orchestrator.core.tally import Tally
from orchestrator.errors import InvalidTransitionError

GIVEN_UP_NOTES = 10


@dataclass(frozen=True, slots=True)
class Setup:
    """What a job was asked to be; times in seconds.

    Args:
        counts: Items of each batch, in submit order.
        max_in_flight: Most children at once (the effective bound), >= 1.
        batch_retries: New attempts for what the infrastructure lost, >= 0.
        start_timeout: Longest time a child may stay Pending; waiting in Scheduled costs nothing.
        batch_timeout: Longest time a child may run; None for no bound.
        item_grace: What running children get before they are asked to cancel.
        cancel_deadline: From a cancelling stop to the end of the job, settled or named.
        submit_concurrency: Creations asked for at the same time.
        isolate: A batch whose runs keep dying gets further attempts while each comes further or names a suspect.
    """

    counts: Sequence[int]
    max_in_flight: int
    kill_switch: Switch | None = None
    enough_when: Switch | None = None
    on_trip: StopMode = StopMode.CANCEL
    batch_retries: int = 2
    start_timeout: float = 600.0
    batch_timeout: float | None = None
    item_grace: float = 12.0
    cancel_deadline: float = 30.0
    submit_concurrency: int = 1
    isolate: bool = True


class BatchState:
    """One batch: its stage, its attempt, and what is known of its child."""

    __slots__ = (
        "ask_at",
        "attempt",
        "counts",
        "died",
        "giving_up",
        "index",
        "outcome",
        "phase",
        "phase_since",
        "reading",
        "run",
        "sequence",
        "silent_at",
        "stage",
        "started",
        "state_name",
        "unconfirmed",
        "unread",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.stage = Stage.WAITING
        self.attempt = 0
        self.run: RunId | None = None
        self.phase: Phase | None = None
        self.state_name = ""
        self.died = ""  # how its process died, in Prefect's words
        self.phase_since = 0.0
        self.started = False  # it has been Running at some time
        self.counts: Counts | None = None
        self.sequence = -1
        self.giving_up: str | None = None  # why this attempt is being cancelled although the job goes on
        self.silent_at: float | None = None  # given up then; no process may be left to end it
        self.unread = False  # it was settled without its ledger, which could not be read
        self.unconfirmed = False  # the cancel deadline passed before its end was read
        self.ask_at: float | None = None  # UNKNOWN only: when to ask again; None while an answer is awaited
        self.reading: Reading | None = None
        self.outcome: BatchOutcome | None = None


class State:
    """A job in progress. Read it freely; only `step` changes it."""

    def __init__(self, setup: Setup) -> None:
        switches = [s for s in (setup.kill_switch, setup.enough_when) if s is not None]
        windows = frozenset[int]().union(*(s.windows() for s in switches))
        self.setup = setup
        self.batches = [BatchState(i) for i in range(len(setup.counts))]
        self.tally = Tally(sum(setup.counts), windows=windows)
        self.standing = Standing(setup.max_in_flight, setup.kill_switch)
        self.retry: deque[int] = deque()  # batches whose next attempt waits for its turn
        self.next_new = 0  # no batch from here on was ever asked for
        self.active: set[int] = set()  # batches that hold a place of the window
        self.submitting = 0
        self.submit_not_before = 0.0
        self.deferrals = 0
        self.begun = False  # `Started` has happened: until then a parent that takes over only restores
        self.stop: StopRecord | None = None
        self.stop_at = 0.0
        self.tripped_clause: str | None = None
        self.tripped_numbers: dict[str, float] = {}
        self.tripped_batch: int | None = None
        self.verdict: Verdict | None = None
        self.stood_down = False
        self.max_in_flight_seen = 0
        self.notes: list[str] = []  # what a person should read in the report, at most 100
        self.given_up = 0  # batches that ran out of attempts; of the first few there is a note

    @property
    def window(self) -> int:
        """Most children at once, as operators left it."""
        return self.standing.window

    @property
    def kill_switch(self) -> Switch | None:
        return self.standing.kill_switch

    @property
    def paused(self) -> bool:
        return self.standing.paused

    @property
    def is_over(self) -> bool:
        return self.verdict is not None or self.stood_down

    @property
    def cancelling(self) -> bool:
        return self.stop is not None and self.stop.mode is StopMode.CANCEL

    def note(self, text: str) -> None:
        if len(self.notes) < 100:
            self.notes.append(text)

    def note_given_up(self, text: str) -> None:
        """A batch ran out of attempts: where very many do, that must not crowd out what is rare."""
        self.given_up += 1
        if self.given_up <= GIVEN_UP_NOTES:
            self.note(text)

    def all_notes(self) -> list[str]:
        """What the report says besides its numbers."""
        more = self.given_up - GIVEN_UP_NOTES
        if more <= 0:
            return self.notes
        return [*self.notes, "one more batch was given up" if more == 1 else f"{more:,} more batches were given up"]

    def move(self, batch: BatchState, to: Stage) -> None:
        """Put a batch into a stage, and keep what is derived from stages."""
        if batch.stage is Stage.SUBMITTING:
            self.submitting -= 1
        if to is Stage.SUBMITTING:
            self.submitting += 1
        batch.stage = to
        if to in HOLDS_A_PLACE:
            self.active.add(batch.index)
            self.max_in_flight_seen = max(self.max_in_flight_seen, len(self.active))
        else:
            self.active.discard(batch.index)

    def move_by_time(self, batch: BatchState, to: Stage) -> None:
        """As `move`, for what no event about the batch causes; checked against `TIMED`."""
        if to not in TIMED[batch.stage].to:
            raise InvalidTransitionError(f"batch {batch.index}: {batch.stage} does not become {to} by itself")
        self.move(batch, to)
