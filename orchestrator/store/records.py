"""What is written in a job folder, as values: their JSON forms, and readers that believe nothing.

Whoever can write the folder can write anything there: readers check types and ranges, ignore fields that they do not
know, and refuse a newer format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from orchestrator.core.model import Counts, EndReason, Failure, ItemOutcome, StopCause, StopMode, StopRecord
from orchestrator.errors import StorageError, StoreCorruptError
from orchestrator.store.jsonl import decode_json
from orchestrator.store.layout import FORMAT

OnLoss = Literal["stop", "finish"]


@dataclass(frozen=True, slots=True)
class JobRecord:
    """`job.json`: what a job is; written once, when its items are staged.

    Args:
        nonce: Random; names the staged items and is part of each child run's idempotency key.
        created: Time in UTC, ISO 8601.
        spec: The job's parameters and what its children must know, as JSON.
        total, batches: Number of items; number of batches they are cut into.
        parts, bytes, hash: Of the staged items: objects, their bytes together, SHA-256 over them.
        previous: Id of the job that this one redoes a part of; None otherwise.
    """

    job_id: str
    nonce: str
    created: str
    spec: dict[str, Any]
    total: int
    batches: int
    parts: int = 0
    bytes: int = 0
    hash: str = ""
    previous: str | None = None
    format: int = FORMAT

    @property
    def retry_of(self) -> str | None:
        """Id of the job whose failed, unknown or not started items this one runs again; None for other items."""
        found = self.spec.get("retry_of")
        return found if isinstance(found, str) else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], what: str) -> JobRecord:
        read = Fields(data, what)
        return cls(
            job_id=read.text("job_id"), nonce=read.text("nonce"), created=read.text("created"),
            spec=dict(read.mapping("spec")), total=read.count("total"), batches=read.count("batches"),
            parts=read.count("parts", 0), bytes=read.count("bytes", 0), hash=read.text("hash", ""),
            previous=read.text_or_none("previous"), format=read.count("format"),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lease:
    """The parent's sign of life: the counter grows with each beat; what children do when it stops growing."""

    counter: int
    epoch: int
    on_loss: OnLoss = "stop"

    @classmethod
    def from_json(cls, data: Mapping[str, Any], what: str) -> Lease:
        read = Fields(data, what)
        # What we do not know stops the children: the cautious of the two.
        return cls(read.count("counter"), read.count("epoch"), "finish" if data.get("on_loss") == "finish" else "stop")


@dataclass(frozen=True, slots=True)
class OutcomeRecord:
    """How one item ended; a line in the ledger.

    Args:
        index, key: The item.
        outcome: A ledger holds `succeeded` and `failed` alone; a report of all items all four.
        tries: How often it was tried in this attempt.
        error_type, error_text: Of the last try, when it failed: class name; one line, masked and cut by the writer.
        result: What it returned, as JSON.
        seconds: Duration over all its tries; None when it was not measured.
        batch, attempt: Where it was recorded; attempt None when no attempt recorded it.
    """

    index: int
    key: str
    outcome: ItemOutcome
    tries: int = 1
    error_type: str | None = None
    error_text: str | None = None
    result: Any = None
    seconds: float | None = None
    batch: int = -1
    attempt: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The ledger's line: short names, nothing that is None."""
        data: dict[str, Any] = {"i": self.index, "k": self.key, "o": self.outcome.value, "n": self.tries}
        if self.error_type is not None:
            data["e"] = {"type": self.error_type, "text": self.error_text or ""}
        if self.result is not None:
            data["r"] = self.result
        if self.seconds is not None:
            data["s"] = round(self.seconds, 6)
        return data

    @classmethod
    def from_json(cls, data: Any, batch: int, attempt: int) -> OutcomeRecord:
        """A ledger's line as a value.

        Raises:
            ValueError: it is none.
        """
        if not isinstance(data, dict):
            raise ValueError("not a mapping")
        index, key, tries = data.get("i"), data.get("k"), data.get("n", 1)
        if type(index) is not int or type(key) is not str or type(tries) is not int or tries < 0:
            raise ValueError("index, key or tries malformed")
        outcome = ItemOutcome(str(data.get("o")))
        if outcome not in (ItemOutcome.SUCCEEDED, ItemOutcome.FAILED):
            raise ValueError("a ledger holds ended items only")
        seconds = data.get("s")
        if seconds is not None and (type(seconds) not in (int, float) or not 0 <= seconds < math.inf):
            raise ValueError("seconds malformed")
        error = data.get("e")
        if error is not None and not (
            isinstance(error, dict) and type(error.get("type")) is str and type(error.get("text", "")) is str
        ):
            raise ValueError("error malformed")
        return cls(
            index=index, key=key, outcome=outcome, tries=tries, error_type=error["type"] if error else None,
            error_text=error.get("text", "") if error else None, result=data.get("r"),
            seconds=None if seconds is None else float(seconds), batch=batch, attempt=attempt,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class EndRecord:
    """`a<k>.end`: an attempt's last word.

    Args:
        reason: Why it ended.
        counts: Of the whole batch, outcomes taken over from earlier attempts included.
        in_progress: Indices of items that had started and got no outcome.
        records, segments, carried: Own records; segments they lie in (0 on storage that appends); outcomes taken over.
        seconds: Duration of the attempt.
        uniform: For flows we did not build: the one outcome of all items, written by the parent; else None.
        error: For a uniform failure: what Prefect said; of an attempt that refused to run: why.
    """

    reason: EndReason
    counts: Counts = field(default_factory=Counts)
    in_progress: tuple[int, ...] = ()
    records: int = 0
    segments: int = 0
    carried: int = 0
    seconds: float = 0.0
    uniform: ItemOutcome | None = None
    error: Failure | None = None

    @property
    def says_all(self) -> bool:
        """It accounts for the whole batch: an attempt that settled nothing leaves that to the ones before it."""
        return not self.refused and self.uniform in (None, ItemOutcome.SUCCEEDED, ItemOutcome.FAILED)

    @property
    def refused(self) -> bool:
        return self.reason is EndReason.REFUSED

    @property
    def why(self) -> str:
        """What an attempt said that refused to run; "" for any other."""
        return self.error.text if self.refused and self.error else ""

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        data.update(
            format=FORMAT, reason=self.reason.value, counts=self.counts.to_json(), seconds=round(self.seconds, 3)
        )
        if self.uniform is None:
            del data["uniform"]
        if self.error is None:
            del data["error"]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any], what: str) -> EndRecord:
        read = Fields(data, what)
        try:
            counts = Counts.from_json(read.mapping("counts", {}))
            error = Counts.from_json({"first_failure": data.get("error")}).first_failure
            reason = EndReason(read.text("reason"))
            uniform = None if data.get("uniform") is None else ItemOutcome(read.text("uniform"))
        except (ValueError, TypeError) as e:
            raise StoreCorruptError(f"{what}: {e}") from e
        in_progress = data.get("in_progress", [])
        if not isinstance(in_progress, list) or not all(type(i) is int and i >= 0 for i in in_progress):
            raise StoreCorruptError(f"{what}: in_progress must be a list of item indices")
        seconds = data.get("seconds", 0)
        if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
            raise StoreCorruptError(f"{what}: seconds must be a number >= 0")
        return cls(
            reason, counts, tuple(dict.fromkeys(in_progress)), read.count("records", 0), read.count("segments", 0),
            read.count("carried", 0), float(seconds), uniform, error,
        )  # fmt: skip


def stop_to_json(record: StopRecord) -> dict[str, Any]:
    return {"format": FORMAT, **asdict(record)}


def stop_from_json(data: Mapping[str, Any], what: str) -> StopRecord:
    """A stop; a mode or cause that we do not know reads as the strongest, since someone did want a stop."""
    read = Fields(data, what)
    mode = StopMode.DRAIN if data.get("mode") == StopMode.DRAIN else StopMode.CANCEL
    try:
        cause = StopCause(read.text("cause", StopCause.REQUESTED.value))
    except ValueError:
        cause = StopCause.REQUESTED
    return StopRecord(mode, cause, read.text("reason", "")[:2000], read.text("who", "")[:200])


def parse_object(data: bytes, what: str, max_bytes: int) -> dict[str, Any]:
    """One JSON object of a format that we know.

    Args:
        data: Its bytes, read up to one more than `max_bytes`.
        what: Its URL, for the error.

    Raises:
        StorageError: it was written by a newer version.
        StoreCorruptError: it is too large, not JSON, not a mapping, or has no format.
    """
    if len(data) > max_bytes:
        raise StoreCorruptError(f"{what} is larger than {max_bytes:,} bytes")
    try:
        value = decode_json(data)
    except ValueError as e:
        raise StoreCorruptError(f"{what} is not JSON ({e})") from e
    if not isinstance(value, dict):
        raise StoreCorruptError(f"{what} is not a JSON mapping")
    check_format(value, what)
    return value


def check_format(data: Mapping[str, Any], what: str) -> None:
    """Nothing, when we can read that format.

    Raises:
        StorageError: it is newer; names both.
        StoreCorruptError: it has none.
    """
    number = data.get("format")
    if type(number) is not int or number < 1:
        raise StoreCorruptError(f"{what} has no format number")
    if number > FORMAT:
        raise StorageError(
            f"{what} has format {number}, this version of prefect-batch-orchestrator reads up to format {FORMAT}; "
            "upgrade it here"
        )


class Fields:
    """Reads fields of a mapping from a folder, each with the type it must have; `what` names it in errors."""

    def __init__(self, data: Mapping[str, Any], what: str) -> None:
        self._data, self._what = data, what

    def count(self, name: str, default: int | None = None) -> int:
        value = self._data.get(name, default)
        if type(value) is not int or value < 0:
            raise StoreCorruptError(f"{self._what}: {name} must be a whole number >= 0")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._data.get(name, default)
        if type(value) is not str:
            raise StoreCorruptError(f"{self._what}: {name} must be a text")
        return value

    def text_or_none(self, name: str) -> str | None:
        return None if self._data.get(name) is None else self.text(name)

    def mapping(self, name: str, default: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        value = self._data.get(name, default)
        if not isinstance(value, dict):
            raise StoreCorruptError(f"{self._what}: {name} must be a mapping")
        return value
