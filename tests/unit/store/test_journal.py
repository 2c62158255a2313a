"""The journal of a parent: written in chunks, read with suspicion."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.core.machine import Setup
from orchestrator.core.machine import events as ev
from orchestrator.core.machine.wire import Header, Recorded
from orchestrator.core.model import Counts, EndReason, Reading
from orchestrator.errors import StorageError, StoreCorruptError, StoreUnavailableError
from orchestrator.store import JobFolder, Store, layout, open_store
from orchestrator.store.journal import Gap, Journal, JournalWriter, open_journal, parents, readings_before
from orchestrator.store.objects import MemoryStore

HEADER = Header(Setup([5] * 100, 4), "1.0", 1, "abc")
_numbers = itertools.count()


class Segments(MemoryStore):
    """An object store, as far as journals see: it cannot append."""

    appends = False  # type: ignore[misc]

    def append(self, name: str, data: bytes) -> None:
        raise AssertionError("object stores cannot append")


@pytest.fixture(params=["memory", "local", "segments"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    url = f"memory://journal-{next(_numbers)}"
    if request.param == "segments":
        return Segments(url)
    return open_store(str(tmp_path / "job") if request.param == "local" else url)


def reading(succeeded: int = 5) -> Reading:
    return Reading(Counts(succeeded), 0, 5 - succeeded, True, EndReason.COMPLETED)


def closed(first: int, count: int = 1, succeeded: int = 5) -> list[Recorded]:
    """Events numbered from `first`: batch n - 1 was read at event n."""
    return [
        Recorded(n, n / 1000, ev.Closed(n - 1, 0, reading(succeeded)), [ev.Submit(n, 0)])
        for n in range(first, first + count)
    ]


def written(store: Store, *chunks: Sequence[Recorded], header: Header = HEADER) -> None:
    writer = JournalWriter(store, header)
    for events in chunks:
        writer.write(events)


def read(store: Store, epoch: int = 1) -> tuple[list[Recorded | Gap], Journal]:
    journal = open_journal(store, parents(store)[epoch])
    return list(journal), journal


def names(store: Store) -> list[str]:
    return [entry.name for entry in store.list(layout.EVENTS)]


def test_what_was_written_is_read_back(store: Store) -> None:
    written(store, closed(1, 3), closed(4, 20), closed(24))
    found, journal = read(store)
    assert found == closed(1, 24)
    assert (journal.header, journal.damaged, journal.unproven) == (HEADER, 0, 0)


def test_a_long_journal_is_read_in_blocks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.store.journal.BLOCK_BYTES", 100)
    written(store, *(closed(n) for n in range(1, 31)))
    found, journal = read(store)
    assert (found, journal.damaged, journal.unproven) == (closed(1, 30), 0, 0)


def test_each_parent_has_a_journal_of_its_own(store: Store) -> None:
    written(store, closed(1, 2))
    written(store, closed(1, 3), closed(4), header=Header(HEADER.setup, "1.0", 12, "abc"))
    store.put("events/nobody.txt", b"x")
    assert list(parents(store)) == [1, 12]
    assert read(store, 12)[0] == closed(1, 4)


def test_segments_are_read_in_the_order_of_their_numbers() -> None:
    store = Segments(f"memory://journal-{next(_numbers)}")
    written(store, *(closed(n) for n in range(1, 31)))
    assert len(names(store)) == 30
    assert read(store)[0] == closed(1, 30)


def torn(store: Store, cut: int) -> None:
    name = names(store)[-1]
    data = store.get(name)
    assert data is not None
    store.put(name, data[:-cut])


@pytest.mark.parametrize("cut", [2, 20, 60, 100, 150])
def test_a_torn_end_costs_what_was_written_last_alone(store: Store, cut: int) -> None:
    written(store, closed(1, 10), closed(11, 2))
    torn(store, cut)
    found, _ = read(store)
    assert found[:10] == closed(1, 10)
    assert found == closed(1, len(found))
    kept = open_journal(store, parents(store)[1]).readings(dict.fromkeys(range(100), 0))
    assert kept == dict.fromkeys(range(10), reading())  # the torn chunk has no hash: not believed


def test_a_chunk_that_broke_off_and_was_written_again_is_read_once(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "job"))

    class FullOnce:
        """The store, whose second append breaks off half-way."""

        appends, url = True, store.url
        appended = 0

        def append(self, name: str, data: bytes) -> None:
            self.appended += 1
            if self.appended == 2:
                store.append(name, data[: len(data) // 2])
                raise StoreUnavailableError("disk full")
            store.append(name, data)

    writer = JournalWriter(FullOnce(), HEADER)  # type: ignore[arg-type]
    writer.write(closed(1, 4))
    with pytest.raises(StoreUnavailableError):
        writer.write(closed(5, 6))
    writer.write(closed(5, 8))
    found, journal = read(store)
    assert found == closed(1, 12)
    assert journal.damaged == 1  # the line that broke off
    kept = open_journal(store, parents(store)[1]).readings(dict.fromkeys(range(100), 0))
    assert kept == dict.fromkeys(range(12), reading())


def test_events_that_could_not_be_written_leave_a_gap_of_their_number(store: Store) -> None:
    written(store, closed(1, 3), closed(10, 2))
    assert read(store)[0] == [*closed(1, 3), Gap(6), *closed(10, 2)]
    assert any(b'{"lost":6}' in (store.get(name) or b"") for name in names(store))


def test_an_event_that_json_cannot_hold_leaves_a_gap(store: Store) -> None:
    written(store, [*closed(1), Recorded(2, 0.002, ev.Ticked(float("nan")), []), *closed(3)])
    assert read(store)[0] == [*closed(1), Gap(1), *closed(3)]


def test_a_missing_segment_leaves_a_gap() -> None:
    store = Segments(f"memory://journal-{next(_numbers)}")
    written(store, closed(1, 2), closed(3, 2), closed(5, 2))
    store.delete("events/1.1.jsonl")
    assert read(store)[0] == [*closed(1, 2), Gap(2), *closed(5, 2)]


def altered(store: Store, old: bytes, new: bytes) -> None:
    for name in names(store):
        data = store.get(name)
        assert data is not None
        store.put(name, data.replace(old, new, 1))


def test_a_line_that_somebody_changed_is_told_and_its_chunk_is_not_believed(store: Store) -> None:
    written(store, closed(1, 3), closed(4, 3))
    altered(store, b'["cl",1,0,[[5]', b'["cl",1,0,[[4]')
    found, journal = read(store)
    assert len(found) == 6
    assert journal.unproven == 3
    kept = open_journal(store, parents(store)[1]).readings(dict.fromkeys(range(100), 0))
    assert sorted(kept) == [3, 4, 5]


def test_a_line_that_was_damaged_is_a_gap(store: Store) -> None:
    written(store, closed(1, 3), closed(4, 3))
    altered(store, b'[2,2,["cl"', b'[2,2,"cl"')
    assert read(store)[0] == [*closed(1), Gap(1), *closed(3, 4)]


def test_two_readings_of_one_attempt_that_differ_are_both_in_doubt(store: Store) -> None:
    twice = [Recorded(1, 0.0, ev.Closed(7, 0, reading(5)), []), Recorded(2, 0.0, ev.Closed(7, 0, reading(4)), [])]
    written(store, [*twice, *closed(3)])
    assert list(open_journal(store, parents(store)[1]).readings({7: 0, 2: 0})) == [2]


def test_only_readings_of_the_attempt_that_is_asked_for_are_given(store: Store) -> None:
    written(store, [Recorded(1, 0.0, ev.Restored(7, 1, reading()), []), *closed(2)])
    assert open_journal(store, parents(store)[1]).readings({7: 0, 1: 0, 2: 0}) == {1: reading()}
    assert open_journal(store, parents(store)[1]).readings({7: 1}) == {7: reading()}


def test_earlier_parents_are_asked_newest_first_and_only_for_what_the_newer_did_not_say(store: Store) -> None:
    for epoch in (1, 2, 3, 4):
        header = Header(HEADER.setup, "1.0", epoch, "abc")
        written(store, closed(1, 2) if epoch == 1 else closed(1, epoch, epoch), header=header)
    found = readings_before(store, 4, "abc", dict.fromkeys(range(100), 0))
    assert found == {0: reading(3), 1: reading(3), 2: reading(3)}
    assert readings_before(store, 3, "abc", {0: 0, 50: 0}) == {0: reading(2)}
    assert readings_before(store, 1, "abc", {0: 0}) == {}


def test_a_journal_of_another_job_under_the_same_id_says_nothing(store: Store) -> None:
    written(store, closed(1, 2))
    assert readings_before(store, 2, "another", {0: 0}) == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n", b"garbage", b"\xff\xfe\n" * 5, b'{"format":1}\n', b"[1,2,3]\n", b'{"lines":1,"sum":"0"}\n',
     b'{"format":1,"version":"x","epoch":1,"nonce":"abc","setup":[[5,99999999999],1]}\n', b"[" * 5000 + b"\n"],
)  # fmt: skip
def test_what_is_no_journal_is_refused_and_says_nothing(store: Store, content: bytes) -> None:
    store.put("events/1.jsonl", content)
    with pytest.raises(StoreCorruptError, match=r"events/1\.jsonl"):
        open_journal(store, ["events/1.jsonl"])
    assert readings_before(store, 2, "abc", {0: 0}) == {}


def test_a_newer_format_is_refused_and_says_nothing(store: Store) -> None:
    store.put("events/1.jsonl", b'{"format":99,"version":"9"}\n')
    with pytest.raises(StorageError, match=r"format 99.*up to format 1"):
        open_journal(store, ["events/1.jsonl"])
    assert readings_before(store, 2, "abc", {0: 0}) == {}


def test_an_event_of_a_kind_that_this_version_does_not_know_is_named_with_the_version_that_does(store: Store) -> None:
    written(store, closed(1, 2))
    altered(store, b'["cl",1', b'["zz",1')
    with pytest.raises(StoreCorruptError, match=r"'zz'.*version 1\.0"):
        read(store)


def test_a_job_that_is_deleted_leaves_no_events(store: Store) -> None:
    written(store, closed(1, 3), header=Header(HEADER.setup, "1.0", 2, "abc"))
    store.put("notes.txt", b"not ours")
    JobFolder(store).delete()
    assert [entry.name for entry in store.list()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("name", "place"),
    [("events/3.jsonl", (3, 0)), ("events/3.12.jsonl", (3, 12)), ("events/3.jsonl.bak", None), ("events/x.jsonl", None),
     ("events/3.1.2.jsonl", None), ("b/3/a0.jsonl", None)],
)  # fmt: skip
def test_names_of_events_say_whose_they_are(name: str, place: tuple[int, int] | None) -> None:
    assert layout.events_name(name) == place
