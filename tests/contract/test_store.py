"""One suite for every kind of storage: the six primitives, and the job folder on top of them."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from prefect.filesystems import LocalFileSystem, RemoteFileSystem

import orchestrator.flows  # noqa: F401 - it knows who reads blocks
from orchestrator.core.model import Counts, EndReason, Failure, ItemOutcome, StopCause, StopMode, StopRecord
from orchestrator.errors import AttemptTakenError, InternalError, JobConflictError, JobNotFoundError
from orchestrator.stack import Stack
from orchestrator.store import (
    EndRecord,
    JobFolder,
    JobRecord,
    Ledger,
    OutcomeRecord,
    Store,
    open_store,
    probe,
)
from orchestrator.store.inventory import FolderKind, look
from orchestrator.store.sources import InlineSource
from orchestrator.store.staging import StageOptions, stage
from tests.s3server import S3Server
from tests.support import eventually

S, F = ItemOutcome.SUCCEEDED, ItemOutcome.FAILED


BLOCKS = [pytest.param(kind, marks=[pytest.mark.real, pytest.mark.slow]) for kind in ("block-local", "block-s3")]


@pytest.fixture(scope="module")
def blocks(session_stack: Stack, s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Blocks with all that their storage needs, by kind."""
    with session_stack.activated():
        LocalFileSystem(basepath=str(tmp_path_factory.mktemp("blocks"))).save("store", _sync=True)
        RemoteFileSystem(basepath="s3://jobs/blocks", settings=s3.block_settings()).save("store", _sync=True)
    return {"block-local": "block:local-file-system/store", "block-s3": "block:remote-file-system/store"}


@pytest.fixture(params=["local", "memory", "s3", *BLOCKS])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = uuid.uuid4().hex
    if request.param == "local":
        return str(tmp_path / "jobs" / name)
    if request.param == "memory":
        return f"memory://jobs/{name}"
    s3 = request.getfixturevalue("s3")
    if request.param == "s3":
        return f"s3://jobs/{name}"
    block = request.getfixturevalue("blocks")[request.param]
    request.getfixturevalue("stack")
    for variable in s3.environment:  # what it needs is in the block
        monkeypatch.delenv(variable, raising=False)
    return f"{block}/{name}"


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url)


@pytest.fixture
def folder(url: str) -> JobFolder:
    return make_job(url, 10, batch_size=5)


def make_job(url: str, items: int, batch_size: int, job_id: str = "job") -> JobFolder:
    folder = JobFolder(url)
    staged = stage(InlineSource([{"n": i} for i in range(items)]), folder, "nonce", StageOptions(batch_size=batch_size))
    record = JobRecord(job_id, "nonce", "2025-01-01T00:00:00Z", {"deployment": "a/b"}, staged.total, staged.batches)
    assert folder.create_job(record)
    return folder


def ok(index: int, **more: object) -> OutcomeRecord:
    return OutcomeRecord(index, str(index), S, **more)  # type: ignore[arg-type]


def bad(index: int, kind: str = "ValueError") -> OutcomeRecord:
    return OutcomeRecord(index, str(index), F, 2, kind, "no good")


class TestPrimitives:
    def test_what_was_put_is_got_whole_or_in_part(self, store: Store) -> None:
        store.put("b/0/a0.jsonl", b"0123456789")
        assert store.get("b/0/a0.jsonl") == b"0123456789"
        assert store.get("b/0/a0.jsonl", 2, 3) == b"234"
        assert store.get("b/0/a0.jsonl", 8) == b"89"
        assert store.get("b/0/a0.jsonl", 8, 100) == b"89"
        assert store.get("b/0/a0.jsonl", 0, 0) == b""

    def test_a_put_replaces(self, store: Store) -> None:
        store.put("lease.json", b"one, and longer")
        store.put("lease.json", b"two")
        assert store.get("lease.json") == b"two"

    def test_an_empty_object_is_not_a_missing_one(self, store: Store) -> None:
        store.put("empty", b"")
        assert store.get("empty") == b""
        assert store.get("empty", 0, 10) == b""
        assert store.get("missing") is None
        assert store.get("missing/deeper", 0, 10) is None

    def test_creating_exclusively_works_once_and_keeps_the_first(self, store: Store) -> None:
        assert store.put_new("epoch/1.json", b"first")
        assert not store.put_new("epoch/1.json", b"second")
        assert store.get("epoch/1.json") == b"first"

    def test_of_many_creators_at_once_exactly_one_wins(self, store: Store) -> None:
        for round_ in range(5):
            barrier = threading.Barrier(8)

            def create(number: int, round_: int = round_, barrier: threading.Barrier = barrier) -> bool:
                barrier.wait()
                return store.put_new(f"epoch/{round_}.json", b"%d" % number)

            with ThreadPoolExecutor(8) as pool:
                won = list(pool.map(create, range(8)))
            assert sum(won) == 1
            assert store.get(f"epoch/{round_}.json") == b"%d" % won.index(True)

    def test_a_listing_is_recursive_sorted_and_never_old(self, store: Store) -> None:
        assert store.list() == []
        assert store.list("b/") == []
        store.put("b/1/a0.end", b"12")
        store.put("b/10/a0.end", b"123")
        store.put("bx", b"1")
        assert [(e.name, e.size) for e in store.list("b/")] == [("b/1/a0.end", 2), ("b/10/a0.end", 3)]
        assert [e.name for e in store.list("b/1/")] == ["b/1/a0.end"]
        store.put("b/2/a0.end", b"")
        store.delete("b/1/a0.end")
        assert [e.name for e in store.list("b/")] == ["b/10/a0.end", "b/2/a0.end"]
        assert [e.name for e in store.list()] == ["b/10/a0.end", "b/2/a0.end", "bx"]

    def test_a_listing_says_when_objects_were_written_and_which_folders_there_are(self, store: Store) -> None:
        assert list(store.folders()) == []
        store.put("loose", b"1")
        store.put("b/1/a0.end", b"12")
        store.put("b/10/a0.end", b"123")
        store.put("items/n/part", b"")
        assert list(store.folders()) == ["b", "items"]
        for entry in store.list():
            assert entry.modified is not None
            assert abs(entry.modified - time.time()) < 120
        store.delete("items/n/part")
        assert list(store.folders()) == ["b"]

    def test_deleting_what_is_not_there_is_fine(self, store: Store) -> None:
        store.put("x", b"1")
        store.delete("x")
        store.delete("x")
        assert store.get("x") is None

    def test_appends_arrive_whole_from_many_threads(self, store: Store) -> None:
        if not store.appends:
            pytest.skip("an object store has no append")
        appender = store.appender("b/0/a0.jsonl")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: appender.write(b"%03d\n" % n), range(400)))
        appender.close()
        store.append("b/0/a0.jsonl", b"end\n")
        data = store.get("b/0/a0.jsonl")
        assert data is not None
        lines = data.split()
        assert lines[-1] == b"end"
        assert sorted(lines[:-1]) == [b"%03d" % n for n in range(400)]

    @pytest.mark.parametrize("name", ["../x", "/x", "a/../b", "a//b", "", ".hidden", "a b", "a/", "é", "x" * 600])
    def test_no_name_leaves_the_folder(self, store: Store, name: str) -> None:
        for action in (lambda: store.put(name, b""), lambda: store.get(name), lambda: store.delete(name)):
            with pytest.raises(InternalError):
                action()

    def test_the_probe_is_content_and_leaves_nothing(self, store: Store) -> None:
        probe(store)
        assert store.list() == []


class TestWhatTheParentSays:
    def test_a_job_is_created_once_and_read_back(self, url: str) -> None:
        folder = JobFolder(url)
        with pytest.raises(JobNotFoundError):
            folder.read_job()
        record = JobRecord("job", "nonce", "2025-01-01T00:00:00Z", {"deployment": "a/b", "é": [1, None]}, 0, 0)
        assert folder.create_job(record)
        assert folder.create_job(record)  # the same request again, as a client library may send it
        assert not folder.create_job(replace(record, nonce="other"))
        assert JobFolder(url).read_job() == record

    def test_parents_claim_numbers_that_only_grow(self, folder: JobFolder) -> None:
        assert folder.newest_epoch() == 0
        with ThreadPoolExecutor(4) as pool:
            claims = list(pool.map(lambda n: folder.claim_epoch({"run": n}), range(4)))
        assert sorted(claims) == [1, 2, 3, 4]
        assert folder.newest_epoch() == 4
        assert folder.is_superseded(3)
        assert not folder.is_superseded(4)

    def test_the_sign_of_life_is_read_as_written_last(self, folder: JobFolder) -> None:
        assert folder.read_lease() is None
        folder.write_lease(1, 1, "stop")
        folder.write_lease(2, 1, "finish")
        lease = folder.read_lease()
        assert lease is not None
        assert (lease.counter, lease.epoch, lease.on_loss) == (2, 1, "finish")

    def test_a_stop_only_escalates(self, folder: JobFolder) -> None:
        assert folder.read_stop() is None
        drain = StopRecord(StopMode.DRAIN, StopCause.REQUESTED, "enough seen", "me")
        cancel = StopRecord(StopMode.CANCEL, StopCause.TRIPPED, "too many failures", "kill switch")
        assert folder.request_stop(drain) == drain
        assert folder.read_stop() == drain
        assert folder.request_stop(cancel) == cancel
        assert folder.read_stop() == cancel
        assert folder.request_stop(drain) == cancel
        assert folder.request_stop(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "again", "me")) == cancel

    def test_wishes_are_read_in_order_and_once(self, folder: JobFolder) -> None:
        assert folder.read_controls() == []
        assert folder.write_control({"max_in_flight": 3}) == 1
        assert folder.write_control({"pause": True}) == 2
        assert [(n, c.get("pause")) for n, c in folder.read_controls(1)] == [(2, True)]
        assert folder.read_controls(2) == []

    def test_the_report_is_read_back(self, folder: JobFolder) -> None:
        assert folder.read_report() is None
        folder.write_report({"verdict": "completed"})
        assert folder.read_report() == {"verdict": "completed"}


class TestInventory:
    def test_every_folder_of_a_storage_is_told_for_what_it_is(self, url: str) -> None:
        over, begun = make_job(f"{url}/over", 10, 5, "over"), make_job(f"{url}/begun", 10, 5, "begun")
        over.write_report({"verdict": "completed"})
        begun.claim_epoch({"run_id": "r-1"})
        assert begun.claim_epoch({"run_id": "r-2"}, after=1) == 2
        begun.write_lease(7, 2, "stop")
        make_job(f"{url}/copy", 10, 5, "another")
        make_job(f"{url}/half", 10, 5, "half").store.delete("job.json")
        open_store(url).put("photos/items/2024.jpg", b"a photo")
        facts = {f.name: f for f in look(url)}
        assert {name: f.kind for name, f in facts.items()} == {
            "over": FolderKind.JOB, "begun": FolderKind.JOB, "copy": FolderKind.DAMAGED, "half": FolderKind.REMAINS,
            "photos": FolderKind.FOREIGN,
        }  # fmt: skip
        assert (facts["over"].over, facts["begun"].over) == (True, False)
        assert (facts["begun"].epoch, facts["begun"].parent) == (2, {"run_id": "r-2"})
        for moment in (facts["over"].over_at, facts["begun"].sign_of_life, facts["half"].newest):
            assert moment is not None
            assert abs(moment - time.time()) < 120
        for name in ("over", "half"):
            JobFolder(facts[name].url).delete()
        assert {f.name for f in look(url)} == {"begun", "copy", "photos"}

    def test_only_one_can_be_the_next_parent_after_a_given_one(self, folder: JobFolder) -> None:
        assert folder.claim_epoch({}) == 1
        with ThreadPoolExecutor(8) as pool:
            claims = [pool.submit(folder.claim_epoch, {"number": n}, after=1) for n in range(8)]
        errors = [claim.exception() for claim in claims]
        assert sum(error is None for error in errors) == 1
        assert {type(error) for error in errors if error} == {JobConflictError}
        assert folder.newest_epoch() == 2


class TestItems:
    def test_staged_items_come_back_batch_by_batch(self, folder: JobFolder) -> None:
        batches = list(folder.batches())
        assert [(b.index, b.start, b.count) for b in batches] == [(0, 0, 5), (1, 5, 5)]
        assert folder.batch(1) == batches[1]
        items = folder.read_items(batches[1])
        assert [(i.index, i.key, i.value) for i in items] == [(n, str(n), {"n": n}) for n in range(5, 10)]


class TestLedger:
    def test_a_healthy_attempt_is_read_from_its_last_word_and_its_records(self, folder: JobFolder) -> None:
        ledger = Ledger(folder, 0, 0, 5)
        carried = ledger.open()
        assert not carried.outcomes
        for i in (2, 0, 1, 4):
            ledger.record(ok(i, result={"square": i * i}, seconds=0.5))
        ledger.record(bad(3))
        counts = Counts(4, 1, 1, {"ValueError": 1}, Failure(3, "3", "ValueError", "no good"))
        ledger.end(EndRecord(EndReason.COMPLETED, counts))
        reading = folder.close_attempt(0, 5, 0)
        assert (reading.counts, reading.unknown, reading.not_started, reading.ended) == (counts, 0, 0, True)
        assert reading.reason is EndReason.COMPLETED
        outcomes = list(folder.outcomes())
        assert [o.index for o in outcomes] == list(range(10))
        assert outcomes[2].result == {"square": 4}
        assert (outcomes[3].error_type, outcomes[3].error_text, outcomes[3].tries) == ("ValueError", "no good", 2)
        assert [o.outcome for o in outcomes[5:]] == [ItemOutcome.NOT_STARTED] * 5
        assert not folder.is_revoked(0, 0)
        objects = [e.name for e in folder.store.list("b/0/")]
        assert len(objects) <= 3

    def test_an_attempt_runs_once(self, folder: JobFolder) -> None:
        first = Ledger(folder, 0, 0, 5)
        first.open()
        with pytest.raises(AttemptTakenError):
            Ledger(folder, 0, 0, 5).open()
        first.close()

    def test_a_lost_attempt_is_closed_by_its_records_and_closing_again_says_the_same(self, folder: JobFolder) -> None:
        lost = Ledger(folder, 0, 0, 5)
        lost.open()
        lost.record(ok(0))
        lost.record(bad(1))
        lost.flush()
        reading = folder.close_attempt(0, 5, 0)
        assert (reading.counts.succeeded, reading.counts.failed, reading.unknown) == (1, 1, 3)
        assert not reading.ended
        assert folder.is_revoked(0, 0)
        lost.record(ok(2))  # it was given up and writes on
        lost.end(EndRecord(EndReason.REVOKED, Counts(2, 1), (3,)))
        assert folder.close_attempt(0, 5, 0) == reading
        assert [o.outcome for o in folder.outcomes()][:3] == [S, F, ItemOutcome.UNKNOWN]

    def test_the_item_in_progress_alone_is_the_one_of_the_moment_in_which_the_attempt_was_given_up(
        self, folder: JobFolder
    ) -> None:
        for attempt, begun in ((0, 2), (1, None)):
            lost = Ledger(folder, 0, attempt, 5)
            lost.open()
            if begun is not None:
                folder.write_now(0, attempt, begun)
            reading = folder.close_attempt(0, 5, attempt)
            assert reading.suspect == begun
            folder.write_now(0, attempt, 3)  # its process goes on
            assert folder.close_attempt(0, 5, attempt) == reading
            lost.close()

    def test_a_new_attempt_takes_over_what_it_finds_and_later_records_are_ignored(self, folder: JobFolder) -> None:
        old = Ledger(folder, 0, 0, 5)
        old.open()
        old.record(ok(0))
        old.flush()
        folder.close_attempt(0, 5, 0)
        old.record(ok(1))  # before its successor starts: still worth having
        old.flush()
        assert folder.unended_before(0, 1) == [0]
        new = Ledger(folder, 0, 1, 5)
        carried = new.open()
        assert carried.outcomes == {0: S, 1: S}
        assert carried.counts.succeeded == 2
        old.record(bad(2))  # too late
        old.end(EndRecord(EndReason.REVOKED, Counts(2, 1)))
        for i in (2, 3, 4):
            new.record(ok(i))
        new.end(EndRecord(EndReason.COMPLETED, Counts(succeeded=5)))
        assert folder.close_attempt(0, 5, 1).counts.succeeded == 5
        outcomes = list(folder.outcomes())[:5]
        assert [o.outcome for o in outcomes] == [S] * 5
        assert [o.attempt for o in outcomes] == [0, 0, 1, 1, 1]

    def test_an_attempt_that_never_came_to_life_leaves_its_items_not_started(self, folder: JobFolder) -> None:
        reading = folder.close_attempt(0, 5, 0)
        assert (reading.unknown, reading.not_started, reading.ended) == (0, 5, False)

    def test_a_stopped_attempt_says_which_items_were_in_progress(self, folder: JobFolder) -> None:
        ledger = Ledger(folder, 1, 0, 5)
        ledger.open()
        ledger.record(ok(5))
        ledger.end(EndRecord(EndReason.STOPPED, Counts(succeeded=1), (7,)))
        reading = folder.close_attempt(1, 5, 0)
        assert (reading.unknown, reading.not_started, reading.reason) == (1, 3, EndReason.STOPPED)
        got = {o.index: o.outcome for o in folder.outcomes() if o.index >= 5}
        assert got[7] is ItemOutcome.UNKNOWN
        assert got[6] is got[8] is got[9] is ItemOutcome.NOT_STARTED

    def test_attempts_lists_every_trace(self, folder: JobFolder) -> None:
        ledger = Ledger(folder, 0, 0, 5)
        ledger.open()
        ledger.close()
        folder.close_attempt(0, 5, 0)
        folder.close_by_value(1, 5, 0, S)
        found = folder.attempts()
        assert (found[0].highest, found[0].started, found[0].revoked, found[0].ended) == (0, {0}, {0}, set())
        assert (found[1].started, found[1].ended) == (set(), {0})

    def test_flows_we_did_not_build_have_one_outcome_for_all_items(self, folder: JobFolder) -> None:
        assert folder.close_by_value(0, 5, 0, S).counts.succeeded == 5
        failure = Failure(5, "5", "Failed", "it said no")
        reading = folder.close_by_value(1, 5, 0, F, failure)
        assert (reading.counts.failed, reading.counts.first_failure) == (5, failure)
        assert folder.close_by_value(1, 5, 0, S) == reading  # the first answer stands
        assert [o.outcome for o in folder.outcomes()] == [S] * 5 + [F] * 5
        assert [o.error_text for o in folder.outcomes([F])] == ["it said no"] * 5

    def test_an_unknown_batch_that_succeeds_when_tried_again_has_succeeded(self, folder: JobFolder) -> None:
        assert folder.close_by_value(0, 5, 0, ItemOutcome.UNKNOWN).unknown == 5
        assert folder.close_by_value(0, 5, 1, ItemOutcome.NOT_STARTED).unknown == 5
        assert folder.close_by_value(0, 5, 2, S).counts.succeeded == 5
        assert [o.outcome for o in folder.outcomes()][:5] == [S] * 5

    def test_outcomes_are_in_the_folder_without_being_asked_for(self, folder: JobFolder) -> None:
        ledger = Ledger(folder, 0, 0, 5, segment_seconds=0.2)
        ledger.open()
        ledger.record(ok(0))

        def seen() -> bool:
            return next(iter(folder.outcomes())).outcome is S

        eventually(seen, 10, "the outcome in the folder")
        ledger.close()

    def test_records_that_come_after_the_end_are_refused(self, folder: JobFolder) -> None:
        ledger = Ledger(folder, 0, 0, 5)
        ledger.open()
        assert ledger.record(ok(0))
        ledger.end(EndRecord(EndReason.STOPPED, Counts(succeeded=1)))
        assert not ledger.record(ok(1))

    def test_a_removed_job_leaves_nothing(self, folder: JobFolder) -> None:
        folder.delete()
        assert folder.store.list() == []
