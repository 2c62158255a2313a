"""The values everything else is written in: ids, items, batches, counts, phases, references.

All frozen: once built, a value is a fact. Times are seconds on the job's own clock unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, NewType

JobId = NewType("JobId", str)
RunId = NewType("RunId", str)  # a Prefect flow run id, in its string form
BatchIndex = NewType("BatchIndex", int)  # 0-based, in submit order
ItemIndex = NewType("ItemIndex", int)  # 0-based, in input order: an item's identity
Attempt = NewType("Attempt", int)  # 0-based

JSON = None | bool | int | float | str | list[Any] | dict[str, Any]
# ^ a JSON value: what an item, a result and a parameter may be


class Phase(StrEnum):
    """Where Prefect says a child run is. Source: Prefect's StateType, client/schemas/objects.py, 3.8.8."""

    SCHEDULED = "SCHEDULED"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CRASHED = "CRASHED"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        return self in _TERMINAL


_TERMINAL = frozenset({Phase.COMPLETED, Phase.FAILED, Phase.CRASHED, Phase.CANCELLED})


UNREACHABLE = "Unreachable"
"""Name of the Failed state of a child run that did not reach the job folder: it cannot say so there."""


class ItemOutcome(StrEnum):
    """How an item ended; exactly one holds for each staged item of a finished job."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNKNOWN = "unknown"  # it was handed to a run that died or was ended before it could say
    NOT_STARTED = "not_started"


class BatchOutcome(StrEnum):
    """How a batch ended."""

    COMPLETED = "completed"  # every item has an outcome and at least one succeeded (or the batch is empty)
    FAILED = "failed"  # no item succeeded, or the run failed before it could run its items
    CRASHED = "crashed"  # infrastructure lost it and its attempts are used up
    CANCELLED = "cancelled"
    NOT_SUBMITTED = "not_submitted"
    UNCONFIRMED = "unconfirmed"  # asked to stop and not seen to end within the cancel deadline


class StopMode(StrEnum):
    """What a stop does to children in flight. `cancel` is stronger than `drain`: stops only escalate."""

    DRAIN = "drain"
    CANCEL = "cancel"


class Verdict(StrEnum):
    """How a job ended."""

    COMPLETED = "completed"
    ENOUGH = "enough"
    TRIPPED = "tripped"
    CANCELLED = "cancelled"
    FAILED = "failed"


class StopCause(StrEnum):
    """Why a job stops early."""

    TRIPPED = "tripped"  # the kill switch
    ENOUGH = "enough"  # enough_when
    REQUESTED = "requested"  # `orchestrator stop`
    PARENT_CANCELLED = "parent_cancelled"
    FAILED = "failed"  # an error that only a person can mend: deployment deleted, storage gone
    CLEANED_UP = "cleaned_up"  # its parent run had been over for long


class EndReason(StrEnum):
    """Why a child's attempt ended, in its own words (written in the ledger's end record)."""

    COMPLETED = "completed"  # ran out of items
    STOPPED = "stopped"  # the job's stop
    LEASE_LOST = "lease_lost"  # no sign of life from the parent
    REVOKED = "revoked"  # a newer attempt took over
    TERMINATED = "terminated"  # SIGTERM: Prefect's cancel, or its infrastructure going away
    STUCK = "stuck"  # too many items hung beyond their timeout: the process ended itself
    LEDGER_FAILED = "ledger_failed"  # outcomes could not be written
    REFUSED = "refused"  # it cannot run as it stands, and a new attempt would not help


@dataclass(frozen=True, slots=True)
class Item:
    """One unit of the user's work. `key` labels it for people and may repeat; `index` is its identity."""

    index: int
    key: str
    value: Any


@dataclass(frozen=True, slots=True)
class Batch:
    """An ordered slice of the staged items, and where in the job folder its lines lie.

    Args:
        index: 0-based batch number.
        start: Index of its first item.
        count: Number of items, >= 1.
        part: Name of the staged part that holds its lines, relative to the job folder.
        offset: Byte offset of its first line in that part.
        length: Bytes of its lines together.
        hash: SHA-256 of those bytes, hex.
        group: The value of `group_by` that all its items share, as text; None when not grouped.
    """

    index: int
    start: int
    count: int
    part: str
    offset: int
    length: int
    hash: str
    group: str | None = None


@dataclass(frozen=True, slots=True)
class BatchReference:
    """What a batch flow is given instead of items: where they are, and proof that they are the right ones.

    It is the `batch` parameter of every batch flow; about 400 bytes of JSON whatever the batch holds.
    """

    job: str
    folder: str  # absolute fsspec URL of the job folder
    nonce: str
    batch: int
    batches: int
    attempt: int
    start: int
    count: int
    part: str
    offset: int
    length: int
    hash: str

    def to_json(self) -> dict[str, Any]:
        # Not `asdict`, which copies deeply: this is done for each child run.
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def of(cls, *, job: str, folder: str, nonce: str, batches: int, attempt: int, batch: Batch) -> BatchReference:
        return cls(
            job=job, folder=folder, nonce=nonce, batch=batch.index, batches=batches, attempt=attempt,
            start=batch.start, count=batch.count, part=batch.part, offset=batch.offset, length=batch.length,
            hash=batch.hash,
        )  # fmt: skip


def idempotency_key(job: str, nonce: str, batch: int, attempt: int) -> str:
    """The key under which Prefect knows a batch attempt, for ever.

    The nonce is random in the job's spec, so that a job id used again cannot adopt old runs: Prefect's keys are unique
    per flow and never expire. Source: prefect server/database/orm_models.py, 3.8.8.
    """
    return f"{job}/{nonce}/{batch}/{attempt}"


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed item, as shown to people: texts already masked and cut."""

    index: int
    key: str
    type: str  # exception class name, e.g. "TimeoutError"
    text: str  # one line

    @property
    def label(self) -> str:
        """Its key, on one line; "" where that is no more than its number."""
        return "" if self.key == str(self.index) else " ".join(self.key.split())[:80]

    @property
    def item(self) -> str:
        """ "item 25 (photo 25)", or "item 25" where its key says no more."""
        return f"item {self.index} ({self.label})" if self.label else f"item {self.index}"


@dataclass(frozen=True, slots=True)
class Counts:
    """Items of one batch so far, over all its attempts (those that a new attempt took over from an older included).

    Args:
        succeeded, failed: Items with that outcome.
        trailing_failures: Failures since the last success, in the order they ended.
        errors: Error type -> failed items, the most frequent ten.
        first_failure: The earliest failure known; None when there is none.
    """

    succeeded: int = 0
    failed: int = 0
    trailing_failures: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    first_failure: Failure | None = None

    @property
    def settled(self) -> int:
        return self.succeeded + self.failed

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Counts:
        """Counts from their JSON form, tolerant of missing fields.

        Raises:
            ValueError: a count is not a whole number >= 0, or `errors` or `first_failure` is malformed.
        """
        numbers = {n: data.get(n, 0) for n in ("succeeded", "failed", "trailing_failures")}
        if any(type(v) is not int or v < 0 for v in numbers.values()):
            raise ValueError(f"counts must be whole numbers >= 0, got {numbers}")
        errors = data.get("errors") or {}
        if not isinstance(errors, Mapping):
            raise ValueError("errors must be a mapping of type to count")
        first = data.get("first_failure")
        try:
            types = {str(k): int(v) for k, v in errors.items()}
            failure = (
                Failure(int(first["index"]), str(first["key"]), str(first["type"]), str(first["text"]))
                if first
                else None
            )
        except (KeyError, TypeError, OverflowError) as e:
            raise ValueError(f"malformed counts: errors {errors!r}, first_failure {first!r}") from e
        return cls(errors=types, first_failure=failure, **numbers)


@dataclass(frozen=True, slots=True)
class Progress:
    """News of a running child: its batch's counts, with a sequence that only grows within an attempt."""

    batch: int
    attempt: int
    sequence: int
    counts: Counts


@dataclass(frozen=True, slots=True)
class Reading:
    """What the ledger says of a batch once an attempt of it is over: final for that attempt.

    Args:
        counts: Over all attempts so far.
        unknown: Items that may have been in progress when a run died, and have no outcome.
        not_started: Items that provably did not start.
        ended: The attempt wrote its end record itself (it was not lost).
        reason: From that record; None when `ended` is False.
        suspect: The item that was in progress alone when its run died; None when none is known.
        damaged: Records that are missing or cannot be read; their items have no outcome.
        why: What the attempt said when it refused to run; "" otherwise.
        advanced: The attempt itself ended at least one item.
    """

    counts: Counts
    unknown: int
    not_started: int
    ended: bool
    reason: EndReason | None = None
    suspect: int | None = None
    damaged: int = 0
    why: str = ""
    advanced: bool = False


@dataclass(frozen=True, slots=True)
class StopRecord:
    """A stop, as written in the job folder and obeyed by parent and children."""

    mode: StopMode
    cause: StopCause
    reason: str  # one line for people
    who: str  # "kill switch", "parent run <name>", "command line on <host>"
