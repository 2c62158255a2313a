"""Reading the ledger of a batch: which records count, and what they add up to.

Theory. Attempt k is the only writer of its log. Its first line, the header, says how many records of each earlier
attempt it took over when it started. A process that was given up may still write for a while; what it writes beyond
that number is ignored by everybody for ever, so that parent, children and reports agree whatever arrives late:

* records of attempt j count up to what the *next* attempt that has a header took over;
* without one, up to the number in `a<j>.revoked`, which the parent wrote when it gave attempt j up;
* without that, all of them.

A line is one record, counted whether it can be read or not; a last line without its newline is not there yet. The
first record of an item is its outcome: an item that has one is not run again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.core.model import Counts, Failure, ItemOutcome, Reading
from orchestrator.errors import StorageError, StoreCorruptError
from orchestrator.store import layout
from orchestrator.store.jsonl import decode_json
from orchestrator.store.primitives import Entry, Store
from orchestrator.store.records import EndRecord, Fields, OutcomeRecord, check_format, parse_object

ERROR_TYPES = 10  # most frequent error types kept in counts


@dataclass(slots=True)
class AttemptFiles:
    """What a listing says of one batch, by attempt number.

    Args:
        logs: Attempt -> its segments in order, [] for the one log of storage that appends.
    """

    logs: dict[int, list[int]] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    revoked: set[int] = field(default_factory=set)
    recalled: set[int] = field(default_factory=set)

    @property
    def highest(self) -> int:
        """The highest attempt that left any trace; -1 when there is none."""
        return max((*self.logs, *self.ended, *self.revoked), default=-1)

    @property
    def started(self) -> set[int]:
        """Attempts whose process came as far as its ledger."""
        return set(self.logs)

    def before(self, attempt: int) -> AttemptFiles:
        """The same without that attempt and later ones."""
        return AttemptFiles(
            {k: v for k, v in self.logs.items() if k < attempt},
            {k for k in self.ended if k < attempt},
            {k for k in self.revoked if k < attempt},
            {k for k in self.recalled if k < attempt},
        )


@dataclass(frozen=True, slots=True)
class AttemptLog:
    """One attempt's log as read. `accepts` is None when its header is not there; a record None when unreadable."""

    accepts: Mapping[int, int] | None
    records: Sequence[OutcomeRecord | None]
    damaged: int


@dataclass(frozen=True, slots=True)
class BatchLedger:
    """Everything the folder says of a batch, merged.

    Args:
        outcomes: Item index -> its record, in the order in which they ended.
        taken: Attempt -> how many of its records count.
        ends: The last words of attempts that count: an attempt given up has none, whatever it wrote later.
        damaged: Records that count, and cannot be read or are not there any more.
    """

    start: int
    count: int
    files: AttemptFiles
    outcomes: Mapping[int, OutcomeRecord]
    taken: Mapping[int, int]
    ends: Mapping[int, EndRecord]
    damaged: int

    def missing(self) -> Mapping[int, ItemOutcome]:
        """The items without a record, each `unknown` or `not_started`, in input order."""
        left = [i for i in range(self.start, self.start + self.count) if i not in self.outcomes]
        uniform = [end.uniform for _, end in sorted(self.ends.items()) if end.uniform is not None]
        if uniform:
            lost = ItemOutcome.UNKNOWN in uniform
            return dict.fromkeys(left, ItemOutcome.UNKNOWN if lost else ItemOutcome.NOT_STARTED)
        if not self.files.logs:
            return dict.fromkeys(left, ItemOutcome.NOT_STARTED)
        last = self.ends.get(max(self.files.logs))
        if last is None or self.damaged:
            return dict.fromkeys(left, ItemOutcome.UNKNOWN)
        begun = set(last.in_progress)
        return {i: ItemOutcome.UNKNOWN if i in begun else ItemOutcome.NOT_STARTED for i in left}

    def uncertain(self) -> frozenset[int]:
        """Items without a record that any attempt may have begun: a successor that does not settle them says so."""
        begun: set[int] = set()
        for attempt in self.files.logs:
            end = self.ends.get(attempt)
            begun.update(range(self.start, self.start + self.count) if end is None else end.in_progress)
        return frozenset(begun - self.outcomes.keys())

    def counts(self) -> Counts:
        """Of the items that have a record, in the order in which they ended."""
        return count(self.outcomes.values())

    def reading(self, attempt: int, alone: int | None = None) -> Reading:
        """The batch as it stands, from the records themselves.

        Args:
            alone: The item that the attempt had in progress alone when it was last heard of.
        """
        missing = Counter(self.missing().values())
        end = self.ends.get(attempt)
        return Reading(
            counts=self.counts(),
            unknown=missing[ItemOutcome.UNKNOWN],
            not_started=missing[ItemOutcome.NOT_STARTED],
            ended=end is not None,
            reason=end.reason if end else None,
            suspect=alone if end is None and alone not in self.outcomes else None,
            damaged=self.damaged,
            why=end.why if end else "",
            advanced=any(record.attempt == attempt for record in self.outcomes.values()),
        )


class Counting:
    """Counts of outcomes in the order in which they end, on top of `carried` ones; not thread safe."""

    def __init__(self, carried: Counts | None = None) -> None:
        carried = carried or Counts()
        self._succeeded, self._failed = carried.succeeded, carried.failed
        self._trailing, self._first = carried.trailing_failures, carried.first_failure
        self._errors: Counter[str] = Counter(carried.errors)

    def add(self, record: OutcomeRecord) -> None:
        """Take one ended item in; any other outcome is passed over."""
        if record.outcome is ItemOutcome.SUCCEEDED:
            self._succeeded += 1
            self._trailing = 0
        elif record.outcome is ItemOutcome.FAILED:
            self._failed += 1
            self._trailing += 1
            kind = record.error_type or "Error"
            self._errors[kind] += 1
            if self._first is None:
                self._first = Failure(record.index, record.key, kind, record.error_text or "")

    def counts(self) -> Counts:
        errors = dict(self._errors.most_common(ERROR_TYPES))
        return Counts(self._succeeded, self._failed, self._trailing, errors, self._first)


def count(records: Iterable[OutcomeRecord]) -> Counts:
    """Counts of records given in the order in which they ended."""
    counting = Counting()
    for record in records:
        counting.add(record)
    return counting.counts()


def files_by_batch(entries: Iterable[Entry]) -> dict[int, AttemptFiles]:
    """A listing of `b/`, sorted out; names that are not ours are passed over."""
    found: dict[int, AttemptFiles] = {}
    for entry in entries:
        name = layout.attempt_name(entry.name)
        if name is None:
            continue
        files = found.setdefault(name.batch, AttemptFiles())
        if name.kind is layout.Kind.END:
            files.ended.add(name.attempt)
        elif name.kind is layout.Kind.REVOKED:
            files.revoked.add(name.attempt)
        elif name.kind is layout.Kind.RECALLED:
            files.recalled.add(name.attempt)
        elif name.kind is layout.Kind.LOG:
            segments = files.logs.setdefault(name.attempt, [])
            if name.segment is not None:
                segments.append(name.segment)
    for files in found.values():
        for segments in files.logs.values():
            segments.sort()
    return found


def list_batch(store: Store, batch: int) -> AttemptFiles:
    """What there is of one batch now."""
    return files_by_batch(store.list(layout.batch(batch))).get(batch, AttemptFiles())


def read_ledger(
    store: Store, batch: int, start: int, count: int, files: AttemptFiles, before: int | None = None
) -> BatchLedger:
    """All that the folder says of one batch.

    Args:
        start, count: Its items.
        files: What there is of it, from a listing.
        before: Only attempts below this number, as the attempt of that number sees them; None for all.

    Raises:
        StorageError: a log was written by a newer version.
    """
    if before is not None:
        files = files.before(before)
    logs = {k: read_log(store, batch, k, segments, start, count) for k, segments in sorted(files.logs.items())}
    cut = {k: read_revoked(store, batch, k) for k in files.revoked}
    ends: dict[int, EndRecord] = {}
    for attempt in sorted(files.ended - files.revoked):
        end = read_end(store, batch, attempt)
        if end is not None:
            ends[attempt] = end
    taken: dict[int, int] = {}
    outcomes: dict[int, OutcomeRecord] = {}
    damaged = 0
    for attempt in sorted(logs.keys() | ends.keys() | cut.keys()):
        log = logs.get(attempt, AttemptLog(None, (), 0))
        accepted = next((later.accepts for k, later in logs.items() if k > attempt and later.accepts is not None), None)
        # A given-up attempt may go on writing until its own fence closes: its successor, who waits for that, takes
        # over what it finds then, which is why the number in .revoked does not bind an attempt that is to start.
        limit = accepted.get(attempt, 0) if accepted is not None else None if before is not None else cut.get(attempt)
        records = log.records if limit is None else log.records[:limit]
        own = ends[attempt].records if attempt in ends else 0
        unreadable = sum(record is None for record in records) + (log.damaged > log.records.count(None))
        damaged += unreadable + max(0, (own if limit is None else limit) - len(records))
        taken[attempt] = len(records)
        for record in records:
            if record is not None:
                outcomes.setdefault(record.index, record)
    if not outcomes:
        outcomes = _uniform(ends, batch, start, count)
    return BatchLedger(start, count, files, outcomes, taken, ends, damaged)


def read_log(store: Store, batch: int, attempt: int, segments: Sequence[int], start: int, count: int) -> AttemptLog:
    """One attempt's log; a log that is not there reads as empty."""
    names = [layout.log(batch, attempt, s) for s in segments]
    # Where there is an appended log it is the only one: segments beside it are not ours.
    whole = store.get(layout.log(batch, attempt)) if store.appends or not segments else None
    data = b"".join(store.get(name) or b"" for name in names) if whole is None else whole
    lines = data.split(b"\n")
    lines.pop()  # what follows the last newline is not whole: a record that was being written
    accepts: Mapping[int, int] | None = None
    damaged = 0
    what = f"{store.url}/{layout.log(batch, attempt, segments[0] if whole is None and segments else None)}"
    if lines:
        accepts = _header(lines[0], what)
        damaged += accepts is None
    records: list[OutcomeRecord | None] = []
    for line in lines[1:]:
        if not line:
            continue
        try:
            record = OutcomeRecord.from_json(decode_json(line), batch, attempt)
            if not start <= record.index < start + count:
                raise ValueError("an item of another batch")
            records.append(record)
        except ValueError:
            records.append(None)
            damaged += 1
    return AttemptLog(accepts, records, damaged)


def _header(line: bytes, what: str) -> Mapping[int, int] | None:
    try:
        data = decode_json(line)
        if not isinstance(data, dict):
            return None
        check_format(data, what)
        accepts = {int(k): v for k, v in Fields(data, what).mapping("accepts").items()}
    except (ValueError, StoreCorruptError):
        return None
    return accepts if all(type(v) is int and v >= 0 for v in accepts.values()) else None


def read_end(store: Store, batch: int, attempt: int) -> EndRecord | None:
    """An attempt's last word; None when there is none, or none that makes sense.

    Raises:
        StorageError: it was written by a newer version.
    """
    name = layout.end(batch, attempt)
    what = f"{store.url}/{name}"
    try:
        data = store.get(name, 0, layout.END_MAX_BYTES + 1)
        if data is None:
            return None
        return EndRecord.from_json(parse_object(data, what, layout.END_MAX_BYTES), what)
    except StoreCorruptError:
        return None  # as if its process had died before it: the records themselves say what happened


def read_now(store: Store, batch: int, attempt: int) -> int | None:
    """The item that an attempt had in progress alone, by its own word; None when it never ran items one by one."""
    return _read_number(store, layout.now(batch, attempt), "item")


def read_alone(store: Store, batch: int, attempt: int) -> int | None:
    """The item that an attempt had in progress alone when it was given up: its process may begin another one later."""
    return _read_number(store, layout.revoked(batch, attempt), "alone")


def read_alive(store: Store, batch: int, attempt: int) -> int | None:
    """The counter of an attempt's last sign of life; None when there is none, or none that can be read."""
    return _read_number(store, layout.alive(batch, attempt), "counter")


def read_revoked(store: Store, batch: int, attempt: int) -> int | None:
    """How many records of a given-up attempt count; None when it is not given up, or that cannot be read."""
    return _read_number(store, layout.revoked(batch, attempt), "records")


def read_recalled(store: Store, batch: int, attempt: int) -> tuple[str, bool] | None:
    """Why the parent wanted an attempt's run to end, and whether for its silence; None when it did not say so.

    One that cannot be read says so all the same: nobody else writes it.
    """
    name = layout.recalled(batch, attempt)
    what = f"{store.url}/{name}"
    try:
        data = store.get(name, 0, layout.CONTROL_MAX_BYTES + 1)
        if data is None:
            return None
        found = parse_object(data, what, layout.CONTROL_MAX_BYTES)
        return " ".join(Fields(found, what).text("reason").split())[:300], found.get("silent") is True
    except StoreCorruptError:
        return "an earlier parent run gave it up", False


def read_how(store: Store, batch: int, attempt: int) -> str | None:
    """How the run of a given-up attempt died, in one line of at most 300 characters; None when nobody knew."""
    name = layout.revoked(batch, attempt)
    what = f"{store.url}/{name}"
    data = store.get(name, 0, layout.CONTROL_MAX_BYTES + 1)
    try:
        if data is None:
            return None
        said = Fields(parse_object(data, what, layout.CONTROL_MAX_BYTES), what).text_or_none("how")
    except StorageError:
        return None
    return " ".join(said.split())[:300] if said else None


def _read_number(store: Store, name: str, field: str) -> int | None:
    """The whole number that a small object is there for; None when it is not there or makes no sense."""
    what = f"{store.url}/{name}"
    try:
        data = store.get(name, 0, layout.CONTROL_MAX_BYTES + 1)
        if data is None:
            return None
        return Fields(parse_object(data, what, layout.CONTROL_MAX_BYTES), what).count(field)
    except StoreCorruptError:
        return None


def _uniform(ends: Mapping[int, EndRecord], batch: int, start: int, count: int) -> dict[int, OutcomeRecord]:
    """The outcomes of a batch whose flow we did not build: the latest attempt that settled decides for all items."""
    for attempt in sorted(ends, reverse=True):
        end = ends[attempt]
        if end.uniform in (ItemOutcome.SUCCEEDED, ItemOutcome.FAILED):
            kind, text = (end.error.type, end.error.text) if end.error else (None, None)
            return {
                i: OutcomeRecord(i, str(i), end.uniform, 1, kind, text, None, None, batch, attempt)
                for i in range(start, start + count)
            }
    return {}


def close_reading(end: EndRecord, count: int) -> Reading | None:
    """What an attempt's last word says of its batch; None when its numbers cannot be."""
    if end.uniform is not None:
        unknown = count if end.uniform is ItemOutcome.UNKNOWN else 0
        idle = count if end.uniform is ItemOutcome.NOT_STARTED else 0
        return Reading(end.counts, unknown, idle, True, end.reason)
    begun = len(end.in_progress)
    idle = count - end.counts.settled - begun
    if idle < 0:
        return None
    return Reading(end.counts, begun, idle, True, end.reason, why=end.why, advanced=end.records > 0)
