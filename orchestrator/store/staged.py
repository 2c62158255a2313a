"""What was staged, read back: the index of batches, and their items.

Nothing is believed that does not fit what `job.json` and the index say of it: whoever changed it did not stage it.
"""

from __future__ import annotations

import hashlib

from orchestrator.core.model import Batch, BatchReference, Item
from orchestrator.errors import StoreCorruptError
from orchestrator.store import layout
from orchestrator.store.jsonl import decode_json
from orchestrator.store.primitives import Store, redact
from orchestrator.store.records import JobRecord


def read_index(store: Store, job: JobRecord, number: int) -> list[Batch]:
    """The batches that one object of a job's index holds; one read.

    Args:
        number: Of the object, from 0 on; each but the last holds `layout.INDEX_BATCHES`.

    Raises:
        StoreCorruptError: it is not there, or not as it was staged.
        StoreUnavailableError: it cannot be read now.
    """
    name = layout.index(job.nonce, number)
    what = _what(store, name)
    data = store.get(name)
    if data is None:
        raise StoreCorruptError(f"{what} is gone: the staged items of this job were removed")
    lines = data.split(b"\n")
    lines.pop()
    first = number * layout.INDEX_BATCHES
    if len(lines) != min(layout.INDEX_BATCHES, job.batches - first):
        raise StoreCorruptError(f"{what} was changed after the job was staged")
    return [_batch(line, first + place, job, what) for place, line in enumerate(lines)]


def _batch(line: bytes, index: int, job: JobRecord, what: str) -> Batch:
    try:
        start, count, part, offset, length, digest, group = decode_json(line)
    except (ValueError, TypeError) as e:
        raise StoreCorruptError(f"{what}: batch {index} is malformed") from e
    numbers = (start, count, part, offset, length)
    if any(type(n) is not int or n < 0 for n in numbers) or count < 1 or type(digest) is not str:
        raise StoreCorruptError(f"{what}: batch {index} is malformed")
    if start + count > job.total or (job.bytes and max(offset, length) > job.bytes):
        raise StoreCorruptError(f"{what}: batch {index} lies outside of what was staged")
    place = layout.part(job.nonce, part)
    return Batch(index, start, count, place, offset, length, digest, None if group is None else str(group))


def read_items(store: Store, batch: Batch | BatchReference) -> list[Item]:
    """A batch's items, by one ranged read; count and hash are checked.

    Raises:
        StoreCorruptError: they are not there, or not the ones that were staged.
        StoreUnavailableError: they cannot be read now.
    """
    if not layout.is_part(batch.part):
        raise StoreCorruptError(f"{redact(store.url)}: {batch.part[:100]!r} is no name of staged items")
    what = _what(store, batch.part)
    data = store.get(batch.part, batch.offset, batch.length)
    if data is None:
        raise StoreCorruptError(f"{what} is gone: the staged items of this job were removed")
    if len(data) != batch.length or hashlib.sha256(data).hexdigest() != batch.hash:
        raise StoreCorruptError(f"{what} was changed after the job was staged: run the job again under a new id")
    lines = data.split(b"\n")
    lines.pop()
    if len(lines) != batch.count:
        raise StoreCorruptError(f"{what}: {len(lines)} items where {batch.count} were staged")
    items = []
    for index, line in enumerate(lines, batch.start):
        try:
            key, value = decode_json(line)
        except (ValueError, TypeError) as e:
            raise StoreCorruptError(f"{what}: item {index} is malformed") from e
        items.append(Item(index, str(index) if key is None else str(key), value))
    return items


def _what(store: Store, name: str) -> str:
    return f"{redact(store.url)}/{name}"
