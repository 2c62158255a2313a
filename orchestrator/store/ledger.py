"""The child's side of the ledger: one writer per attempt, each outcome written as its item ends."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.core.model import Counts, EndReason, Failure, ItemOutcome
from orchestrator.errors import AttemptTakenError, InternalError, StoreUnavailableError
from orchestrator.store import layout
from orchestrator.store.jsonl import encode_json
from orchestrator.store.primitives import Appender
from orchestrator.store.reading import list_batch, read_ledger
from orchestrator.store.records import EndRecord, OutcomeRecord

if TYPE_CHECKING:
    from orchestrator.store.folder import JobFolder


@dataclass(frozen=True, slots=True)
class Carried:
    """What earlier attempts of the batch finished; those items are not run again.

    Args:
        outcomes: Item index -> `succeeded` or `failed`.
        counts: Of them, in the order in which they ended.
    """

    outcomes: Mapping[int, ItemOutcome]
    counts: Counts


class Ledger:
    """Writes one attempt's outcomes. Thread safe; not to be called from a signal handler.

    On storage that appends, each outcome is one write that survives the death of the process. On object stores
    outcomes are gathered and put as numbered segments every `segment_seconds`, every `segment_records` outcomes, and
    on `flush`: at most one segment's outcomes are lost with the process.

    Args:
        folder: The job's folder.
        batch, attempt, count: Which batch, which attempt of it, how many items it has.
        start: Index of its first item; looked up in the folder when None.
    """

    def __init__(
        self,
        folder: JobFolder,
        batch: int,
        attempt: int,
        count: int,
        *,
        start: int | None = None,
        segment_seconds: float = 2.0,
        segment_records: int = 1000,
    ) -> None:
        self._store = folder.store
        self._batch, self._attempt, self._count = batch, attempt, count
        self._start = folder.batch(batch).start if start is None else start
        self._segment_seconds, self._segment_records = segment_seconds, segment_records
        self._carried = 0
        self._uncertain: frozenset[int] = frozenset()
        self._settled: set[int] = set()
        self._records = 0
        self._segments = 0  # put so far, the header's included
        self._pending: list[bytes] = []
        self._appender: Appender | None = None
        self._lock = threading.Lock()  # of the fields
        self._put_lock = threading.Lock()  # of putting segments: in order, one at a time
        self._wake = threading.Condition(self._lock)
        self._closed = False
        self._began = time.monotonic()
        self._thread: threading.Thread | None = None
        self._failure: StoreUnavailableError | None = None

    @property
    def failure(self) -> StoreUnavailableError | None:
        """Why outcomes cannot be written now; None when they can. Look at it before starting an item."""
        return self._failure

    def open(self) -> Carried:
        """Take over what earlier attempts finished, and claim this attempt. Before the first item starts.

        The caller has made sure that each earlier attempt has ended or was given up long enough ago.

        Raises:
            AttemptTakenError: this attempt was opened before, by whatever process.
            StoreUnavailableError: the folder cannot be read or written.
        """
        files = list_batch(self._store, self._batch)
        earlier = read_ledger(self._store, self._batch, self._start, self._count, files, before=self._attempt)
        accepts = {str(k): earlier.taken.get(k, 0) for k in range(self._attempt)}
        header = {"format": layout.FORMAT, "accepts": accepts, "token": secrets.token_hex(8)}
        line = encode_json(header, parsed=True) + b"\n"
        name = layout.log(self._batch, self._attempt, None if self._store.appends else 0)
        # A client library that retries a request by itself may be told that it lost against itself.
        if not self._store.put_new(name, line) and self._store.get(name) != line:
            raise AttemptTakenError(
                f"attempt {self._attempt} of batch {self._batch} was started before; a batch attempt runs once"
            )
        self._carried = len(earlier.outcomes)
        self._uncertain = earlier.uncertain()
        self._began = time.monotonic()
        if self._store.appends:
            self._appender = self._store.appender(name)
        else:
            self._segments = 1
            self._thread = threading.Thread(target=self._put_regularly, name="ledger", daemon=True)
            self._thread.start()
        return Carried({i: r.outcome for i, r in earlier.outcomes.items()}, earlier.counts())

    def record(self, outcome: OutcomeRecord) -> bool:
        """Write one outcome; False when the attempt has ended already and it came too late.

        Raises:
            NotJsonError: the result cannot be written as JSON; nothing was written.
            StoreUnavailableError: outcomes cannot be written; start no further item.
        """
        if outcome.outcome not in (ItemOutcome.SUCCEEDED, ItemOutcome.FAILED):
            raise InternalError(f"a ledger holds ended items only, not {outcome.outcome.value}")
        line = encode_json(outcome.to_json()) + b"\n"
        if self._store.appends:
            return self._append(line, outcome.index)
        with self._lock:
            if self._closed:
                return False
            self._pending.append(line)
            self._note(outcome.index)
            if len(self._pending) in (1, self._segment_records):
                self._wake.notify()
            if self._failure is not None:
                raise StoreUnavailableError(str(self._failure)) from self._failure
        return True

    def flush(self) -> None:
        """See to it that all outcomes recorded so far are in the folder.

        Raises:
            StoreUnavailableError: they are not; a later call tries again.
        """
        if not self._store.appends:
            self._put_segment()

    def end(self, record: EndRecord) -> EndRecord:
        """Flush, then write the attempt's last word; later outcomes are not taken. May be called again if it failed.

        Args:
            record: Reason, counts of the whole batch, items in progress in this attempt; the rest is filled in here,
                also the items that an earlier attempt may have begun and this one did not come to.

        Returns:
            The record as written.

        Raises:
            StoreUnavailableError: it could not be written.
        """
        self.close()
        self.flush()
        segments = 0 if self._store.appends else self._segments
        seconds = record.seconds or time.monotonic() - self._began
        begun = (*record.in_progress, *sorted(self._uncertain - self._settled))
        in_progress = tuple(dict.fromkeys(begun))
        whole = replace(
            record,
            in_progress=in_progress,
            records=self._records,
            segments=segments,
            carried=self._carried,
            seconds=seconds,
        )
        self._store.put_new(layout.end(self._batch, self._attempt), encode_json(whole.to_json()))
        return whole

    def close(self) -> None:
        """Take no more outcomes, without a last word."""
        with self._lock:
            self._closed = True
            self._wake.notify()
            if self._appender is not None:
                self._appender.close()
                self._appender = None
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None

    def _note(self, index: int) -> None:
        if index in self._uncertain:
            self._settled.add(index)

    def _append(self, line: bytes, index: int) -> bool:
        with self._lock:
            if self._appender is None:
                return False
            try:
                self._appender.write(line)
            except StoreUnavailableError as e:
                self._failure = e
                raise
            self._failure = None
            self._records += 1
            self._note(index)
            return True

    def _put_regularly(self) -> None:
        while True:
            with self._lock:
                while not self._pending and not self._closed:
                    self._wake.wait()
                deadline = time.monotonic() + self._segment_seconds
                while len(self._pending) < self._segment_records and not self._closed:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        break
                    self._wake.wait(left)
                if self._closed:
                    return  # `end` flushes
            try:
                self._put_segment()
            except StoreUnavailableError:
                # Remembered in `failure`; what is pending is tried again, not faster than before.
                with self._lock:
                    if not self._closed:
                        self._wake.wait(self._segment_seconds)

    def _put_segment(self) -> None:
        with self._put_lock:
            with self._lock:
                lines = self._pending[:]
            if not lines:
                return
            try:
                self._store.put(layout.log(self._batch, self._attempt, self._segments), b"".join(lines))
            except StoreUnavailableError as e:
                self._failure = e
                raise
            with self._lock:
                # A number is used again until its put was confirmed: a retry then replaces the same lines by more.
                self._segments += 1
                self._records += len(lines)
                del self._pending[: len(lines)]
                self._failure = None


def refuse(folder: JobFolder, batch: int, attempt: int, start: int, error: Exception, why: str) -> None:
    """An attempt's last word when it cannot begin, and no new attempt could.

    Args:
        start: Index of the batch's first item.
        why: One line for people, without secrets.
    """
    record = EndRecord(EndReason.REFUSED, error=Failure(start, "", type(error).__name__, why))
    folder.store.put_new(layout.end(batch, attempt), encode_json(record.to_json()))
