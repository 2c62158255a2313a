"""Going through all outcomes of a job in input order, batch by batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from orchestrator.core.model import Batch, Item, ItemOutcome
from orchestrator.errors import StoreCorruptError
from orchestrator.store.reading import AttemptFiles, read_ledger
from orchestrator.store.records import OutcomeRecord

if TYPE_CHECKING:
    from orchestrator.store.folder import JobFolder

S = TypeVar("S")
T = TypeVar("T")

_AHEAD = 16  # batches read at the same time from an object store

_Row = tuple[Item | None, OutcomeRecord]


def walk_outcomes(folder: JobFolder, only: Collection[ItemOutcome] | None, *, with_items: bool) -> Iterator[_Row]:
    """Each item's outcome in input order, with the item where asked for.

    One listing, then at most one read per log and one for the items of a batch that has some without a record.
    """
    files = folder.attempts()

    def read(batch: Batch) -> list[_Row]:
        return _batch_outcomes(folder, batch, files.get(batch.index, AttemptFiles()), only, with_items)

    ahead = 1 if folder.store.appends else _AHEAD
    for rows in _mapped(read, folder.batches(), ahead):
        yield from rows


def _batch_outcomes(
    folder: JobFolder, batch: Batch, files: AttemptFiles, only: Collection[ItemOutcome] | None, with_items: bool
) -> list[_Row]:
    ledger = read_ledger(folder.store, batch.index, batch.start, batch.count, files)
    missing = ledger.missing()
    by_value = any(end.uniform is not None for end in ledger.ends.values())
    wanted = missing.values() if only is None else [o for o in missing.values() if o in only]
    items: list[Item] | None = None
    if with_items:
        items = folder.read_items(batch)
    elif by_value or wanted:
        try:
            items = folder.read_items(batch)
        except StoreCorruptError:
            pass  # a key is a label: its item's index will do
    rows: list[_Row] = []
    for index in range(batch.start, batch.start + batch.count):
        item = items[index - batch.start] if items else None
        record = ledger.outcomes.get(index)
        if record is None:
            record = OutcomeRecord(index, item.key if item else str(index), missing[index], 0, batch=batch.index)
        elif by_value and item:
            record = replace(record, key=item.key)
        if only is None or record.outcome in only:
            rows.append((item, record))
    return rows


def _mapped(function: Callable[[S], T], values: Iterator[S], ahead: int) -> Iterator[T]:
    """The function's results in order, that many calls of it running ahead of the reader."""
    if ahead <= 1:
        yield from map(function, values)
        return
    with ThreadPoolExecutor(ahead) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for value in values:
                waiting.append(pool.submit(function, value))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
