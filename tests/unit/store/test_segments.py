"""Outcomes on object stores: gathered, put as numbered segments, and kept while the store is away."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from orchestrator.core.model import Counts, EndReason, ItemOutcome
from orchestrator.errors import InternalError, StoreUnavailableError
from orchestrator.store import EndRecord, JobFolder, JobRecord, Ledger, OutcomeRecord, StageOptions, as_source, stage
from orchestrator.store.objects import MemoryStore
from tests.support import eventually

_names = itertools.count()


class Segmented(MemoryStore):
    """An object store in memory: without append, and away when told so."""

    appends = False
    away = False

    def put(self, name: str, data: bytes) -> None:
        if self.away:
            raise StoreUnavailableError("cannot write: the store is away")
        super().put(name, data)

    def append(self, name: str, data: bytes) -> None:
        raise InternalError("an object store cannot append")


@pytest.fixture
def store() -> Segmented:
    return Segmented(f"memory://segments/{next(_names)}")


@pytest.fixture
def folder(store: Segmented) -> JobFolder:
    folder = JobFolder(store)
    staged = stage(as_source(range(100)), folder, "n", StageOptions(batch_size=100))
    folder.create_job(JobRecord("j", "n", "2025-01-01T00:00:00Z", {}, staged.total, staged.batches))
    return folder


@pytest.fixture
def ledger(folder: JobFolder) -> Iterator[Ledger]:
    ledger = Ledger(folder, 0, 0, 100, segment_seconds=0.1, segment_records=10)
    ledger.open()
    yield ledger
    ledger.close()


def record(ledger: Ledger, index: int) -> None:
    assert ledger.record(OutcomeRecord(index, str(index), ItemOutcome.SUCCEEDED))


def succeeded(folder: JobFolder) -> int:
    return sum(1 for _ in folder.outcomes([ItemOutcome.SUCCEEDED]))


def test_a_segment_is_put_after_so_many_outcomes_without_waiting(folder: JobFolder) -> None:
    ledger = Ledger(folder, 0, 0, 100, segment_seconds=3600, segment_records=10)
    ledger.open()
    for index in range(10):
        record(ledger, index)
    eventually(lambda: succeeded(folder) == 10, 10, "ten outcomes in the folder")
    ledger.close()


def test_a_segment_is_put_after_a_while_however_few_there_are(folder: JobFolder, ledger: Ledger) -> None:
    record(ledger, 0)
    eventually(lambda: succeeded(folder) == 1, 10, "the outcome in the folder")


def test_a_healthy_short_attempt_leaves_three_objects(folder: JobFolder) -> None:
    ledger = Ledger(folder, 0, 0, 100)
    ledger.open()
    for index in range(100):
        record(ledger, index)
    end = ledger.end(EndRecord(EndReason.COMPLETED, Counts(succeeded=100)))
    assert (end.records, end.segments) == (100, 2)
    assert [e.name for e in folder.store.list("b/")] == ["b/0/a0.0.jsonl", "b/0/a0.1.jsonl", "b/0/a0.end"]


def test_while_the_store_is_away_recording_says_so_and_afterwards_nothing_is_missing(
    store: Segmented, folder: JobFolder, ledger: Ledger
) -> None:
    store.away = True
    record(ledger, 0)
    eventually(lambda: ledger.failure is not None, 10, "the failure is seen")
    with pytest.raises(StoreUnavailableError, match="the store is away"):
        ledger.record(OutcomeRecord(1, "1", ItemOutcome.SUCCEEDED))  # kept, and the caller knows
    with pytest.raises(StoreUnavailableError):
        ledger.flush()
    with pytest.raises(StoreUnavailableError):
        ledger.end(EndRecord(EndReason.LEDGER_FAILED, Counts(succeeded=2)))
    store.away = False
    ledger.flush()
    assert ledger.failure is None
    assert ledger.end(EndRecord(EndReason.STOPPED, Counts(succeeded=2))).records == 2
    assert succeeded(folder) == 2


def test_segments_are_read_in_the_order_of_their_numbers(folder: JobFolder) -> None:
    ledger = Ledger(folder, 0, 0, 100, segment_seconds=3600)
    ledger.open()
    for index in range(12):  # a10 comes before a2 in a listing
        kind = None if index != 11 else "Late"
        outcome = ItemOutcome.SUCCEEDED if index != 11 else ItemOutcome.FAILED
        ledger.record(OutcomeRecord(index, str(index), outcome, error_type=kind))
        ledger.flush()
    ledger.close()
    counts = folder.close_attempt(0, 100, 0).counts
    assert (counts.succeeded, counts.failed, counts.trailing_failures) == (11, 1, 1)
