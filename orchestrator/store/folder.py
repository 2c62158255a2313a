"""The job folder: what parent and children tell each other, and what remains of a job.

No object has two writers. The parent owns epoch, lease, stop, revocations and report; each attempt owns its log and
its last word; a stop or a control may come from anybody, each in an object of its own that is never rewritten.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from orchestrator.core.model import (
    Batch,
    BatchReference,
    Counts,
    EndReason,
    Failure,
    Item,
    ItemOutcome,
    Reading,
    StopMode,
    StopRecord,
)
from orchestrator.errors import (
    InternalError,
    JobConflictError,
    JobNotFoundError,
    StorageError,
    StoreCorruptError,
    StoreUnavailableError,
)
from orchestrator.store import layout, reading
from orchestrator.store.jsonl import encode_json
from orchestrator.store.opening import open_store
from orchestrator.store.primitives import Store, redact
from orchestrator.store.reading import AttemptFiles, list_batch, read_ledger
from orchestrator.store.records import (
    EndRecord,
    JobRecord,
    Lease,
    OnLoss,
    OutcomeRecord,
    parse_object,
    stop_from_json,
    stop_to_json,
)
from orchestrator.store.staged import read_index, read_items
from orchestrator.store.walking import walk_outcomes


class JobFolder:
    """One job's folder. Synchronous, thread safe; opening it reads and creates nothing.

    Every method may raise `StoreUnavailableError`, and every reading one `StorageError` for a newer format and
    `StoreCorruptError` for content that we did not write.

    Args:
        url: The folder's URL (see `job_folder_url`), or a store opened there.
    """

    def __init__(self, url: str | Store) -> None:
        self.store: Store = open_store(url) if isinstance(url, str) else url
        self._lock = threading.Lock()
        self._job: JobRecord | None = None
        self._index: tuple[int, list[Batch]] | None = None

    @property
    def url(self) -> str:
        return self.store.url

    # What the job is

    def create_job(self, record: JobRecord) -> bool:
        """Write `job.json`, the last step of staging; False when there is a job here already."""
        data = encode_json(record.to_json())
        # A client library that retries a request by itself may be told that it lost against itself; the nonce in the
        # record tells our own from somebody else's.
        return self.store.put_new(layout.JOB, data) or self.store.get(layout.JOB) == data

    def read_job(self) -> JobRecord:
        """The job, read once.

        Raises:
            JobNotFoundError: there is none here.
        """
        if self._job is None:
            data = self._object(layout.JOB, layout.JOB_MAX_BYTES)
            if data is None:
                raise JobNotFoundError(f"there is no job in {redact(self.url)}", field="job_id")
            self._job = JobRecord.from_json(data, self._what(layout.JOB))
        return self._job

    def as_if(self, record: JobRecord) -> JobFolder:
        """The same folder, read as if that job were created in it already: what was staged can be checked before."""
        folder = JobFolder(self.store)
        folder._job = record
        return folder

    def batches(self) -> Iterator[Batch]:
        """All batches in order, in constant memory."""
        for number in range(-(-self.read_job().batches // layout.INDEX_BATCHES)):
            yield from read_index(self.store, self.read_job(), number)

    def batch(self, index: int) -> Batch:
        """The batch of that number."""
        if not 0 <= index < self.read_job().batches:
            raise StoreCorruptError(f"{redact(self.url)} has no batch {index}")
        number, place = divmod(index, layout.INDEX_BATCHES)
        with self._lock:
            if self._index is None or self._index[0] != number:
                self._index = (number, read_index(self.store, self.read_job(), number))
            return self._index[1][place]

    def read_items(self, batch: Batch | BatchReference) -> list[Item]:
        """A batch's items, by one ranged read; count and hash are checked.

        Raises:
            StoreCorruptError: they are not there, or not the ones that were staged.
        """
        return read_items(self.store, batch)

    # Who is the parent, and what it says

    def claim_epoch(self, who: Mapping[str, Any], *, after: int | None = None) -> int:
        """Become the parent: a number above all earlier ones. An older parent that sees it stops acting.

        Args:
            after: Only if that is still the newest.

        Raises:
            JobConflictError: there is a newer one than `after`.
        """
        data = encode_json({"format": layout.FORMAT, "who": dict(who), "token": secrets.token_hex(8)})
        number = (self.newest_epoch() if after is None else after) + 1
        while not self.store.put_new(layout.epoch(number), data):
            if self.store.get(layout.epoch(number)) == data:
                break  # our own request, retried by the client library
            if after is not None:
                raise JobConflictError(f"{redact(self.url)} was taken over by another parent run meanwhile")
            number += 1
        return number

    def read_parent(self, epoch: int) -> dict[str, Any]:
        """What the parent of that number said of itself; {} when it said nothing that can be read."""
        try:
            data = self._object(layout.epoch(epoch)) or {}
        except StorageError:
            return {}
        return dict(data["who"]) if isinstance(data.get("who"), dict) else {}

    def newest_epoch(self) -> int:
        """The number of the newest parent; 0 when there was none."""
        return max((layout.numbered(entry.name) or 0 for entry in self.store.list(layout.EPOCHS)), default=0)

    def is_superseded(self, epoch: int) -> bool:
        """Whether a parent newer than that one exists; one small read."""
        return self._has(layout.epoch(epoch + 1))

    def write_lease(self, counter: int, epoch: int, on_loss: OnLoss) -> None:
        """The parent's sign of life; only the owner of the newest epoch writes it."""
        data = {"format": layout.FORMAT, "counter": counter, "epoch": epoch, "on_loss": on_loss}
        self.store.put(layout.LEASE, encode_json(data, parsed=True))

    def read_lease(self) -> Lease | None:
        """The last sign of life; None before the first."""
        data = self._object(layout.LEASE)
        return None if data is None else Lease.from_json(data, self._what(layout.LEASE))

    def request_stop(self, record: StopRecord) -> StopRecord:
        """Write a stop, unless one at least as strong is there; gives the one in force then."""
        data = encode_json(stop_to_json(record))
        for number in range(1, 10):
            present = self._stop(number)
            if present is None:
                if self.store.put_new(layout.stop(number), data):
                    return record
                present = self._stop(number)
            if present is not None and (present.mode is StopMode.CANCEL or record.mode is StopMode.DRAIN):
                return self.read_stop() or present
        raise InternalError("stops do not escalate")

    def read_stop(self, *, at_least: bool = False) -> StopRecord | None:
        """The stop in force; None when there is none. One small read when there is none or when it cancels.

        Args:
            at_least: Give the one that was read also when the storage does not tell whether a stronger one followed it.
        """
        strongest: StopRecord | None = None
        for number in range(1, 10):
            try:
                present = self._stop(number)
            except StoreUnavailableError:
                if strongest is None or not at_least:
                    raise
                break
            if present is None:
                break
            strongest = present
            if present.mode is StopMode.CANCEL:
                break
        return strongest

    def write_control(self, control: Mapping[str, Any]) -> int:
        """Leave a wish for the parent (another `max_in_flight`, a pause, a kill switch); gives its number."""
        data = encode_json({"format": layout.FORMAT, **control})
        # The first free number: the parent reads them one after another, up to the first that is not there.
        taken = {layout.numbered(entry.name) for entry in self.store.list(layout.CONTROLS)}
        number = next(n for n in range(1, len(taken) + 2) if n not in taken)
        while not self.store.put_new(layout.control(number), data):
            number += 1
        return number

    def read_controls(self, after: int = 0) -> list[tuple[int, dict[str, Any]]]:
        """The wishes with a number above `after`, in order. One small read when there is none."""
        found: list[tuple[int, dict[str, Any]]] = []
        while True:
            try:
                data = self._object(layout.control(after + 1))
            except StorageError:
                data = {}  # one that cannot be understood changes nothing, and hides none that come later
            if data is None:
                return found
            after += 1
            found.append((after, data))

    def write_report(self, report: Mapping[str, Any]) -> None:
        """The job's report; settling again writes the same."""
        self.store.put(layout.REPORT, encode_json({"format": layout.FORMAT, **report}))

    def read_report(self) -> dict[str, Any] | None:
        """The report without its format number; None while the job is not over."""
        data = self._object(layout.REPORT, layout.JOB_MAX_BYTES)
        if data is not None:
            del data["format"]
        return data

    # Attempts

    def close_attempt(self, batch: int, count: int, attempt: int, how: str = "") -> Reading:
        """What there is of a batch once an attempt of it is over, final for that attempt.

        From its last word; without one, the attempt is given up: its number of records, and the item in progress alone,
        are written down, so that whatever its process still writes is ignored. Calling again gives the same.

        Args:
            how: How its run died, in one masked line, for the attempt that comes after it; "" when that is not known.
        """
        if not self.is_revoked(batch, attempt):
            end = self.read_end(batch, attempt)
            if end is not None and (end.says_all or attempt == 0):
                final = reading.close_reading(end, count)
                if final is not None:
                    return final
            files = list_batch(self.store, batch).before(attempt + 1)
            start = self.batch(batch).start
            if end is not None and (end.uniform is not None or end.refused):
                return read_ledger(self.store, batch, start, count, files).reading(attempt)
            # Also for a last word whose numbers cannot be: the records themselves decide then.
            taken = read_ledger(self.store, batch, start, count, files).taken.get(attempt, 0)
            said = {"alone": reading.read_now(self.store, batch, attempt), "how": how or None}
            record = {"format": layout.FORMAT, "records": taken} | {k: v for k, v in said.items() if v is not None}
            self.store.put_new(layout.revoked(batch, attempt), encode_json(record))
        files = list_batch(self.store, batch).before(attempt + 1)
        files.revoked.add(attempt)
        alone = reading.read_alone(self.store, batch, attempt)
        return read_ledger(self.store, batch, self.batch(batch).start, count, files).reading(attempt, alone)

    def close_by_value(
        self, batch: int, count: int, attempt: int, outcome: ItemOutcome, error: Failure | None = None
    ) -> Reading:
        """For flows that we did not build: one outcome for all items, written by the parent. Idempotent."""
        counts = Counts()
        if outcome is ItemOutcome.SUCCEEDED:
            counts = Counts(succeeded=count)
        elif outcome is ItemOutcome.FAILED:
            kind = error.type if error else "Error"
            counts = Counts(failed=count, trailing_failures=count, errors={kind: count}, first_failure=error)
        record = EndRecord(EndReason.COMPLETED, counts, uniform=outcome, error=error)
        self.store.put_new(layout.end(batch, attempt), encode_json(record.to_json()))
        return self.close_attempt(batch, count, attempt)

    def is_revoked(self, batch: int, attempt: int) -> bool:
        """Whether the parent gave that attempt up; one small read."""
        return self._has(layout.revoked(batch, attempt))

    def read_revoked(self, batch: int, attempt: int) -> int | None:
        """How many records of a given-up attempt count; None when it was not given up."""
        return reading.read_revoked(self.store, batch, attempt)

    def write_recalled(self, batch: int, attempt: int, reason: str, silent: bool) -> None:
        """The parent wants the run of that attempt to end although the job goes on. The first reason stands."""
        data = encode_json({"format": layout.FORMAT, "reason": reason, "silent": silent})
        self.store.put_new(layout.recalled(batch, attempt), data)

    def read_recalled(self, batch: int, attempt: int) -> tuple[str, bool] | None:
        """Why the parent wanted the run of that attempt to end, and whether for its silence; None when it did not."""
        return reading.read_recalled(self.store, batch, attempt)

    def read_end(self, batch: int, attempt: int) -> EndRecord | None:
        """An attempt's last word; None when there is none, or none that can be read."""
        return reading.read_end(self.store, batch, attempt)

    def unended_before(self, batch: int, attempt: int) -> list[int]:
        """The earlier attempts without a last word: their processes may be alive still."""
        files = list_batch(self.store, batch)
        return [k for k in range(attempt) if k not in files.ended]

    def write_now(self, batch: int, attempt: int, item: int) -> None:
        """An attempt that runs items one by one says which one it begins; if it dies, that one is suspected."""
        self.store.put(layout.now(batch, attempt), encode_json({"format": layout.FORMAT, "item": item}, parsed=True))

    def write_alive(self, batch: int, attempt: int, counter: int) -> None:
        """An attempt's sign of life: the counter grows."""
        data = encode_json({"format": layout.FORMAT, "counter": counter}, parsed=True)
        self.store.put(layout.alive(batch, attempt), data)

    def read_alive(self, batch: int, attempt: int) -> int | None:
        """The counter of an attempt's last sign of life; None when there is none, or none that makes sense."""
        return reading.read_alive(self.store, batch, attempt)

    def has_begun(self, batch: int, attempt: int) -> bool:
        """Whether an attempt's process came as far as its ledger; one listing of the batch."""
        return attempt in list_batch(self.store, batch).started

    def died_before(self, batch: int, attempt: int) -> dict[int, int | None]:
        """The earlier attempts that began and left no last word, each with the item it had in progress alone."""
        files = list_batch(self.store, batch).before(attempt)
        return {k: reading.read_now(self.store, batch, k) for k in sorted(files.logs) if k not in files.ended}

    def how_it_died(self, batch: int, attempt: int) -> str | None:
        """How the run of a given-up attempt died, in one line; None when nobody knew."""
        return reading.read_how(self.store, batch, attempt)

    def attempts(self) -> dict[int, AttemptFiles]:
        """All that attempts left, by batch; one recursive listing. Batches without a trace are absent."""
        return reading.files_by_batch(self.store.list(layout.BATCHES))

    def counts_so_far(self, batch: int, files: AttemptFiles) -> Counts:
        """What a batch came to until now: its last word, or else its records; changes nothing.

        Args:
            files: Of that batch, from `attempts`.
        """
        end = self.read_end(batch, max(files.ended)) if files.ended else None
        if end is not None and end.uniform is None and end.says_all:
            return end.counts
        place = self.batch(batch)
        return read_ledger(self.store, batch, place.start, place.count, files).counts()

    # Outcomes

    def outcomes(self, only: Collection[ItemOutcome] | None = None) -> Iterator[OutcomeRecord]:
        """Every item's outcome in input order, merged over attempts; memory is that of a few batches.

        Args:
            only: Outcomes wanted; None for all four.
        """
        for _, record in walk_outcomes(self, only, with_items=False):
            yield record

    def items(self, only: Collection[ItemOutcome]) -> Iterator[tuple[Item, OutcomeRecord]]:
        """The items that ended so, with how they ended, in input order."""
        for item, record in walk_outcomes(self, only, with_items=True):
            if item is not None:
                yield item, record

    # Removal

    def discard_staging(self, nonce: str) -> None:
        """Remove what was staged under a nonce that became no job."""
        for entry in self.store.list(layout.staging(nonce)):
            self.store.delete(entry.name)

    def delete(self) -> None:
        """Remove the whole job, `job.json` first, so that a half-removed job is none; what is not ours stays."""
        entries = self.store.list()  # before: what another job of this id stages from now on is not in it
        self.store.delete(layout.JOB)
        self._job = self._index = None
        ours = [entry.name for entry in entries if layout.is_ours(entry.name)]
        if self.store.appends:
            for name in ours:
                self.store.delete(name)
        else:  # each is a request of its own
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(self.store.delete, ours))
        self.store.tidy()

    def _stop(self, number: int) -> StopRecord | None:
        name = layout.stop(number)
        try:
            data = self._object(name)
            return None if data is None else stop_from_json(data, self._what(name))
        except StorageError as e:
            # Unreadable, or newer than we are: somebody wants a stop, and that much we understand.
            return stop_from_json({"reason": f"a stop that cannot be read: {e}"}, self._what(name))

    def _object(self, name: str, max_bytes: int = layout.CONTROL_MAX_BYTES) -> dict[str, Any] | None:
        data = self.store.get(name, 0, max_bytes + 1)
        return None if data is None else parse_object(data, self._what(name), max_bytes)

    def _has(self, name: str) -> bool:
        """Whether there is something of that name; what cannot be read is there, and means what its name says."""
        try:
            return self.store.get(name, 0, 1) is not None
        except StoreCorruptError:
            return True

    def _what(self, name: str) -> str:
        return f"{redact(self.url)}/{name}"
