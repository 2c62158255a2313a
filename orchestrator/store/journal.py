"""The recorded events of a job's parents: one journal per parent, written by it alone, for replay and for resuming.

Lines are gathered and written in chunks. Each chunk ends with a line that says how many lines it has and a hash over
them, so that a reader knows which lines are as they were written; the events are numbered, so that it knows which are
missing. A chunk whose writing failed half-way is written again, and its numbers tell the copies apart.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from orchestrator.core.machine import events as ev
from orchestrator.core.machine.wire import EVENT_CODES, Header, NewerFormatError, Recorded
from orchestrator.core.model import Reading
from orchestrator.errors import OrchestratorError, StorageError, StoreCorruptError
from orchestrator.store import layout
from orchestrator.store.jsonl import decode_json, encode_json
from orchestrator.store.primitives import Store, redact

BLOCK_BYTES = 4 << 20  # read at once
LINE_MAX_BYTES = 16 << 20
CHUNK_MAX_LINES = 100_000  # a writer makes them about a hundred times smaller
JOURNALS = 5  # read at most when a job is taken over
SEGMENTS_AT_ONCE = 8

_READ = tuple(b',["%s",' % EVENT_CODES[kind].encode() for kind in (ev.Closed, ev.Restored))


class JournalWriter:
    """Writes the journal of one parent; one thread at a time.

    Args:
        store: The job's folder.
        header: What stands before the events.
    """

    def __init__(self, store: Store, header: Header) -> None:
        self._store, self._header = store, header
        self._segment = 0
        self._next = 1  # number of the event that follows the last one written
        self._begun = self._torn = False

    @property
    def appends(self) -> bool:
        """Whether writing often costs no further objects."""
        return self._store.appends

    def write(self, events: Sequence[Recorded]) -> None:
        """Write a chunk: all of it or, as far as readers go, nothing.

        Raises:
            StoreUnavailableError: it was not written; the same events may be given again.
        """
        data = self._chunk_of(events)
        if not self._store.appends:
            self._store.put(layout.events(self._header.epoch, self._segment), data)
            self._segment += 1
        else:
            name = layout.events(self._header.epoch)
            torn, self._torn = self._torn, True
            self._store.append(name, b"\n" + data if torn else data)
            self._torn = False
        self._begun, self._next = True, events[-1].number + 1

    def _chunk_of(self, events: Sequence[Recorded]) -> bytes:
        return chunk(events, header=None if self._begun else self._header, lost=events[0].number - self._next)


def chunk(events: Sequence[Recorded], *, header: Header | None, lost: int = 0) -> bytes:
    """The lines of a chunk.

    Args:
        header: Stands before the first chunk.
        lost: Events before these that could not be written.
    """
    lines = [] if header is None else [encode_json(header.to_json(), parsed=True)]
    if lost:
        lines.append(encode_json({"lost": lost}, parsed=True))
    lines += filter(None, map(_line, events))
    lines.append(encode_json({"lines": len(lines), "sum": _sum(lines)}, parsed=True))
    return b"\n".join(lines) + b"\n"


@dataclass(frozen=True, slots=True)
class Gap:
    """So many events are missing here: they could not be written, or were lost or damaged since."""

    lost: int


class Journal:
    """The recorded events of one parent, read once from front to back in constant memory.

    Args:
        lines: Its lines without their ends; the last one may be torn.
        what: What errors call it.

    Raises:
        StorageError: it was recorded by a newer version.
        StoreCorruptError: it is no journal.
    """

    def __init__(self, lines: Iterable[bytes], what: str) -> None:
        self._chunks, self._what = _chunks(lines), what
        self._first: tuple[list[bytes], bool] = next(self._chunks, ([], False))
        head = self._first[0][:1]
        try:
            self.header = Header.from_json(decode_json(head[0]) if head else None)
        except NewerFormatError as e:
            raise StorageError(f"{what}: {e}", field=None) from e
        except ValueError as e:
            raise StoreCorruptError(f"{what}: {e}", field=None) from e
        self.damaged = 0  # lines that could not be read so far, the torn last one included
        self.unproven = 0  # events so far that no hash confirms: changed by somebody, or written last before a death

    def __iter__(self) -> Iterator[Recorded | Gap]:
        """Its events in order, each once, and the gaps between them.

        Raises:
            StoreCorruptError: it holds kinds of events that this version does not know.
        """
        expected = 1
        for lines, proven in self._all():
            for line in lines:
                if (value := self._value(line)) is None:
                    continue
                try:
                    found = Recorded.of_wire(value)
                except ValueError as e:
                    raise StoreCorruptError(
                        f"{self._what}: {e} (recorded by version {self.header.version or 'unknown'})", field=None
                    ) from e
                if found.number < expected:
                    continue  # written twice
                if found.number > expected:
                    yield Gap(found.number - expected)
                expected = found.number + 1
                self.unproven += not proven
                yield found

    def readings(self, wanted: Mapping[int, int]) -> dict[int, Reading]:
        """What was read of attempts that are over, by batch, from lines that are surely as they were written.

        Args:
            wanted: Batch -> its attempt of interest.
        """
        found: dict[int, Reading] = {}
        doubtful: set[int] = set()
        for lines, proven in self._all():
            for line in lines if proven else ():
                if not any(kind in line for kind in _READ):
                    continue
                try:
                    event = Recorded.of_wire(decode_json(line)).event
                except ValueError:
                    continue
                if not isinstance(event, (ev.Closed, ev.Restored)) or wanted.get(event.batch) != event.attempt:
                    continue
                if found.setdefault(event.batch, event.reading) != event.reading:
                    doubtful.add(event.batch)
        return {batch: reading for batch, reading in found.items() if batch not in doubtful}

    def _all(self) -> Iterator[tuple[list[bytes], bool]]:
        lines, proven = self._first
        yield lines[1:], proven
        yield from self._chunks

    def _value(self, line: bytes) -> object:
        """What a line of events holds; None for a line that is none."""
        try:
            value = decode_json(line)
        except ValueError:
            self.damaged += 1
            return None
        return None if isinstance(value, dict) else value


def parents(store: Store) -> dict[int, list[str]]:
    """The parents that recorded, each with the names of its objects in order; one listing."""
    found: dict[int, list[tuple[int, str]]] = {}
    for entry in store.list(layout.EVENTS):
        if (place := layout.events_name(entry.name)) is not None:
            found.setdefault(place[0], []).append((place[1], entry.name))
    return {epoch: [name for _, name in sorted(names)] for epoch, names in sorted(found.items())}


def open_journal(store: Store, names: Sequence[str]) -> Journal:
    """The journal in these objects (see `parents`).

    Raises:
        StorageError: it was recorded by a newer version.
        StoreCorruptError: it is no journal.
    """
    return Journal(_lines(_blocks(store, names)), f"{redact(store.url)}/{names[0]}")


def readings_before(store: Store, epoch: int, nonce: str, wanted: Mapping[int, int]) -> dict[int, Reading]:
    """What earlier parents wrote down of attempts that are over; nothing that is in doubt, and no error.

    Args:
        epoch: The parent that asks.
        nonce: The job's.
        wanted: Batch -> the attempt of it that is over.
    """
    found: dict[int, Reading] = {}
    try:
        journals = parents(store)
        for number in [n for n in reversed(journals) if n < epoch][:JOURNALS]:
            left = {batch: attempt for batch, attempt in wanted.items() if batch not in found}
            if not left:
                break
            found.update(_readings_of(store, journals[number], nonce, left))
    except OrchestratorError:
        pass  # the folder itself says it too, only more slowly
    return found


def _readings_of(store: Store, names: Sequence[str], nonce: str, wanted: Mapping[int, int]) -> dict[int, Reading]:
    try:
        journal = open_journal(store, names)
    except StorageError:
        return {}
    return journal.readings(wanted) if journal.header.nonce == nonce else {}


# ------------------------------------------------------------------ lines


def _line(event: Recorded) -> bytes | None:
    try:
        return encode_json(event.to_wire(), parsed=True)
    except ValueError:
        return None  # it holds what JSON cannot: a gap


def _blocks(store: Store, names: Sequence[str]) -> Iterator[bytes]:
    """The bytes of these objects, one after the other."""
    if len(names) == 1:
        start = 0
        while block := store.get(names[0], start, BLOCK_BYTES):
            yield block
            start += len(block)
            if len(block) < BLOCK_BYTES:
                return
        return
    with ThreadPoolExecutor(SEGMENTS_AT_ONCE) as pool:  # an object store answers slowly, and many at a time
        for first in range(0, len(names), SEGMENTS_AT_ONCE):
            for block in pool.map(store.get, names[first : first + SEGMENTS_AT_ONCE]):
                yield block or b""


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of these bytes; what follows the last line's end as well, unless there is nothing."""
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        yield from whole
        if len(rest) > LINE_MAX_BYTES:
            return
    if rest:
        yield rest


def file_lines(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """The lines of a file of this machine.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        yield from _lines(iter(lambda: file.read(BLOCK_BYTES), b""))


def _chunks(lines: Iterable[bytes]) -> Iterator[tuple[list[bytes], bool]]:
    """The lines of each chunk without its last, and whether its hash confirms them."""
    gathered: list[bytes] = []
    for line in lines:
        if not line:
            continue  # between a chunk that broke off and the same again
        if not line.startswith(b'{"lines":'):
            gathered.append(line)
            if len(gathered) >= CHUNK_MAX_LINES:
                yield gathered, False
                gathered = []
            continue
        size = _size_if_sound(line, gathered)
        if before := gathered[: len(gathered) - size]:
            yield before, False
        if size:
            yield gathered[-size:], True
        gathered = []
    if gathered:
        yield gathered, False


def _size_if_sound(line: bytes, gathered: Sequence[bytes]) -> int:
    """How many of the gathered lines the last line of a chunk vouches for; 0 when their hash is another."""
    try:
        value = decode_json(line)
    except ValueError:
        return 0
    size = value.get("lines")
    sound = type(size) is int and 0 < size <= len(gathered) and value.get("sum") == _sum(gathered[-size:])
    return size if sound else 0


def _sum(lines: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line + b"\n")
    return digest.hexdigest()[:16]
