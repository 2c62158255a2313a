"""Staging: a source is streamed once into the job folder, validated, labelled, cut into batches, hashed.

A line of a part is `[key, item]`, key null for the default (the item's index). A line of an index is
`[start, count, part, offset, bytes, sha256, group]`, one per batch. Memory holds one part and one index at a time,
besides 16 bytes per key where keys must be compared.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.core.batching import BatchingError, Cutter
from orchestrator.core.model import ItemOutcome
from orchestrator.errors import ConfigurationError, SourceError, StorageError, StoreUnavailableError
from orchestrator.store import layout
from orchestrator.store.folder import JobFolder
from orchestrator.store.formats import Row
from orchestrator.store.jsonl import NotJsonError, encode_json
from orchestrator.store.primitives import job_folder_url
from orchestrator.store.series import is_series, jobs_like
from orchestrator.store.sources import Source

KEY_MAX_CHARACTERS = 1000
LARGE_BATCH_BYTES = 64 << 20  # said, since a child run reads its batch in one piece
_PROGRESS_ITEMS = 10_000


@dataclass(frozen=True, slots=True)
class StageOptions:
    """How items are labelled and cut; names, units and defaults as in the job's parameters.

    Args:
        max_bytes: Most bytes of a batch's items as JSON.
        key, select, weight, group_by: Names of fields of items that are mappings. All four are looked up in the whole
            item, also when `select` passes on a part of it.
        unique_keys: Refuse a key that came before.
        skip_succeeded_of: Id of a job in the same storage, or a pattern such as `nightly-*` for all that match; items
            whose key succeeded there are left out.
        storage: Where that job lies; None: beside the folder that is staged into.
    """

    batch_size: int = 100
    max_bytes: int | None = None
    max_weight: float | None = None
    weight: str | None = None
    group_by: str | None = None
    key: str | None = None
    select: str | None = None
    unique_keys: bool = False
    skip_succeeded_of: str | None = None
    storage: str | None = None


@dataclass(frozen=True, slots=True)
class Staged:
    """What was staged.

    Args:
        total, batches: Number of items and of batches.
        parts, bytes, hash: Objects that hold the items, their bytes together, SHA-256 over them (hex).
        skipped: Items left out by `skip_succeeded_of`.
        warnings: What people should know, one sentence each.
    """

    total: int
    batches: int
    parts: int
    bytes: int
    hash: str
    skipped: int = 0
    warnings: tuple[str, ...] = ()


def stage(
    source: Source,
    folder: JobFolder,
    nonce: str,
    options: StageOptions | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Staged:
    """Stream a source into a job folder. `job.json` is not written: the job exists only once that is (`create_job`).

    Args:
        nonce: Of the job; nothing was staged under it before.
        on_progress: Told items and bytes so far, every 10,000 items.

    Raises:
        SourceError: the source cannot be read or is malformed, or holds an item that no batch can hold.
        ConfigurationError: options out of range or at odds.
        StoreUnavailableError: the folder cannot be written.
        After any of them nothing is left in the folder.
    """
    writer = _Writer(folder, nonce)
    try:
        return _stage(source, folder, options or StageOptions(), writer, on_progress)
    except BaseException:
        try:
            folder.discard_staging(nonce)
        except StoreUnavailableError:
            pass  # what cannot be removed is named by no job.json: `cleanup` finds it
        raise


def _stage(
    source: Source,
    folder: JobFolder,
    options: StageOptions,
    writer: _Writer,
    on_progress: Callable[[int, int], None] | None,
) -> Staged:
    cutter = Cutter(options.batch_size, options.max_bytes, options.max_weight)
    labels = _Labels(source, folder, options)
    parsed = source.parsed
    skipped = 0
    for row in source.read():
        key = labels.key(row, writer.total)
        if labels.is_skipped(key):
            skipped += 1
            continue
        value = row.value if options.select is None else labels.field(row, options.select, "select")
        weight = None if options.weight is None else labels.weight(row)
        group = None if options.group_by is None else labels.text(row, options.group_by, "group_by")
        try:
            data = encode_json(value, parsed=parsed)
            begins = cutter.add(len(data), weight, group)
        except (NotJsonError, BatchingError) as e:
            raise SourceError(str(e), source=source.name, line=row.line) from e
        writer.add(data, key, begins, group)
        if on_progress is not None and writer.total % _PROGRESS_ITEMS == 0:
            on_progress(writer.total, writer.bytes)
    writer.finish()
    if on_progress is not None:
        on_progress(writer.total, writer.bytes)
    return Staged(
        total=writer.total, batches=writer.batches, parts=writer.parts, bytes=writer.bytes, hash=writer.hash,
        skipped=skipped, warnings=tuple(_warnings(options, cutter, writer, skipped, labels.compared)),
    )  # fmt: skip


def _warnings(options: StageOptions, cutter: Cutter, writer: _Writer, skipped: int, compared: int) -> list[str]:
    said = []
    if skipped:
        jobs = f"job {options.skip_succeeded_of}" if compared == 1 else f"{compared} jobs {options.skip_succeeded_of}"
        said.append(f"{skipped:,} items are left out: they succeeded in {jobs}.")
    elif options.skip_succeeded_of is not None and not compared:
        said.append(f"Nothing is left out: there is no job {options.skip_succeeded_of} yet.")
    if cutter.returned_groups:
        said.append(
            f"The items are not sorted by {options.group_by}: {cutter.first_returned_group!r} came back after another "
            f"value ({cutter.returned_groups:,} such returns); each return begins a new batch. Sort them for fewer."
        )
    if writer.largest_batch > LARGE_BATCH_BYTES:
        said.append(
            f"The largest batch has {writer.largest_batch:,} bytes, which its child run reads in one piece; a smaller "
            "batch_size or max_bytes needs less memory."
        )
    return said


class _Writer:
    """Gathers lines into batches, batches into parts, and puts parts and indexes as they fill up."""

    def __init__(self, folder: JobFolder, nonce: str) -> None:
        self._store, self._nonce = folder.store, layout.check_nonce(nonce)
        self.total = self.batches = self.parts = self.bytes = self.largest_batch = 0
        self._batch: list[bytes] = []
        self._group: str | None = None
        self._part: list[bytes] = []
        self._part_bytes = 0
        self._index: list[bytes] = []
        self._indexes = 0
        self._whole = hashlib.sha256()

    @property
    def hash(self) -> str:
        return self._whole.hexdigest()

    def add(self, data: bytes, key: str | None, begins: bool, group: str | None) -> None:
        if begins and self._batch:
            self._close_batch()
        self._group = group
        label = b"null" if key is None else encode_json(key, parsed=True)
        self._batch.append(b"[%b,%b]\n" % (label, data))
        self.total += 1

    def finish(self) -> None:
        if self._batch:
            self._close_batch()
        self._put_part()
        self._put_index()

    def _close_batch(self) -> None:
        data = b"".join(self._batch)
        count = len(self._batch)
        start = self.total - count
        digest = hashlib.sha256(data).hexdigest()
        place = [start, count, self.parts, self._part_bytes, len(data), digest, self._group]
        self._index.append(encode_json(place, parsed=True) + b"\n")
        self._whole.update(data)
        self._part.append(data)
        self._part_bytes += len(data)
        self.bytes += len(data)
        self.largest_batch = max(self.largest_batch, len(data))
        self.batches += 1
        self._batch = []
        if self._part_bytes >= layout.PART_BYTES:
            self._put_part()
        if len(self._index) == layout.INDEX_BATCHES:
            self._put_index()

    def _put_part(self) -> None:
        if self._part:
            self._store.put(layout.part(self._nonce, self.parts), b"".join(self._part))
            self.parts += 1
            self._part, self._part_bytes = [], 0

    def _put_index(self) -> None:
        if self._index:
            self._store.put(layout.index(self._nonce, self._indexes), b"".join(self._index))
            self._indexes += 1
            self._index = []


class _Labels:
    """Keys, weights and groups of rows, with the line in every complaint."""

    def __init__(self, source: Source, folder: JobFolder, options: StageOptions) -> None:
        self._source, self._options = source, options
        self._seen: set[bytes] | None = set() if options.unique_keys else None
        self._done: set[bytes] = set()
        self.compared = 0  # earlier jobs whose successes are left out
        if options.max_weight is not None and options.weight is None:
            raise ConfigurationError("needs weight, the field that holds an item's weight", field="max_weight")
        if options.skip_succeeded_of is not None:
            earlier = _earlier(folder, options)
            self.compared = len(earlier)
            self._done = {_digest(r.key) for job in earlier for r in job.outcomes((ItemOutcome.SUCCEEDED,))}

    def key(self, row: Row, index: int) -> str | None:
        """The item's label; None for its index."""
        name = self._options.key
        key = self.text(row, name, "key") if name is not None else row.key
        if key is None:
            if self._options.skip_succeeded_of is not None:
                raise ConfigurationError(
                    "needs key, the field by which items are recognised: an index says nothing across jobs",
                    field="skip_succeeded_of",
                )
            return None
        if len(key) > KEY_MAX_CHARACTERS:
            raise self._error(row, f"its key has {len(key):,} characters; at most {KEY_MAX_CHARACTERS:,} make a label")
        if self._seen is not None:
            digest = _digest(key)
            if digest in self._seen:
                raise self._error(row, f"the key {key[:100]!r} came before, and unique_keys is on")
            self._seen.add(digest)
        return key

    def is_skipped(self, key: str | None) -> bool:
        return bool(self._done) and key is not None and _digest(key) in self._done

    def field(self, row: Row, name: str, option: str) -> Any:
        """The value of a field of the row's item."""
        if not isinstance(row.value, Mapping):
            kind = type(row.value).__name__
            raise self._error(row, f"{option}={name} needs items that are mappings, this one is of type {kind}")
        if name not in row.value:
            present = ", ".join(repr(str(field)[:40]) for field in list(row.value)[:10]) or "none"
            raise self._error(row, f"{option}={name}: the item has no such field; it has {present}")
        return row.value[name]

    def text(self, row: Row, name: str, option: str) -> str:
        """A field's value as a label."""
        value = self.field(row, name, option)
        if isinstance(value, str):
            return value
        if isinstance(value, bool | int | float):
            try:
                return encode_json(value).decode()
            except NotJsonError as e:
                raise self._error(row, f"{option}={name}: {e}") from e
        raise self._error(row, f"{option}={name}: its value must be a text or a number, not {type(value).__name__}")

    def weight(self, row: Row) -> float:
        """The weight field as a number; numbers written as text (CSV) will do."""
        value = self.field(row, str(self._options.weight), "weight")
        if isinstance(value, str):
            try:
                value = int(value) if value.strip().lstrip("+").isdigit() else float(value)
            except ValueError:
                pass
        if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
            raise self._error(
                row, f"weight={self._options.weight}: must be a finite number >= 0, got {str(value)[:50]!r}"
            )
        return float(value) if isinstance(value, float) else int(value)

    def _error(self, row: Row, reason: str) -> SourceError:
        return SourceError(reason, source=self._source.name, line=row.line)


def _earlier(folder: JobFolder, options: StageOptions) -> list[JobFolder]:
    """The jobs that `skip_succeeded_of` names; of a series there may be none yet."""
    root, name = options.storage or folder.url.rpartition("/")[0], str(options.skip_succeeded_of)
    try:
        if is_series(name):
            return jobs_like(root, name)
        earlier = JobFolder(job_folder_url(root, name))
    except ConfigurationError as e:
        if isinstance(e, StorageError):
            raise
        raise ConfigurationError(str(e).removeprefix("job_id: "), field="skip_succeeded_of") from e
    earlier.read_job()
    return [earlier]


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
