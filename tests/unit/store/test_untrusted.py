"""A job folder that somebody else wrote in: a clear error or a counted loss, never a crash."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from orchestrator.core.model import Batch, Counts, EndReason, ItemOutcome, StopMode
from orchestrator.errors import InternalError, StorageError, StoreCorruptError
from orchestrator.store import EndRecord, JobFolder, JobRecord, Ledger, OutcomeRecord, StageOptions, parse_source, stage
from orchestrator.store.reading import AttemptFiles, list_batch, read_ledger

S, U, N = ItemOutcome.SUCCEEDED, ItemOutcome.UNKNOWN, ItemOutcome.NOT_STARTED


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    folder = JobFolder(str(tmp_path / "j"))
    staged = stage(parse_source("range:0:10"), folder, "n", StageOptions(batch_size=5))
    folder.create_job(JobRecord("j", "n", "2025-01-01T00:00:00Z", {}, staged.total, staged.batches))
    return JobFolder(folder.url)


def started(folder: JobFolder, *indices: int) -> Ledger:
    ledger = Ledger(folder, 0, 0, 5)
    ledger.open()
    for index in indices:
        ledger.record(OutcomeRecord(index, str(index), S))
    return ledger


def test_a_torn_last_line_is_not_there_yet(folder: JobFolder) -> None:
    started(folder, 0, 1)
    folder.store.append("b/0/a0.jsonl", b'{"i":2,"k":"2","o":"succ')
    assert [o.outcome for o in folder.outcomes()][:3] == [S, S, U]
    assert folder.close_attempt(0, 5, 0).counts.succeeded == 2


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b'{"i":2,"k":"2","o":"great"}',
        b'{"i":2,"k":"2","o":"unknown"}',
        b'{"i":true,"k":"2","o":"succeeded"}',
        b'{"i":2,"k":2,"o":"succeeded"}',
        b'{"i":7,"k":"7","o":"succeeded"}',
        b'{"i":2,"k":"2","o":"succeeded","n":-1}',
        b'{"i":2,"k":"2","o":"succeeded","s":"long"}',
        b'{"i":2,"k":"2","o":"succeeded","s":1e999}',
        b'{"i":2,"k":"2","o":"failed","e":"bad"}',
        b'{"i":2,"k":"2","o":"failed","e":{"type":1}}',
        b"[" * 100_000,
        b"9" * 5_000,
    ],
)
def test_a_malformed_line_is_skipped_and_counted_and_the_next_ones_are_read(folder: JobFolder, line: bytes) -> None:
    ledger = started(folder, 0)
    folder.store.append("b/0/a0.jsonl", line + b"\n")
    ledger.record(OutcomeRecord(1, "1", S))
    read = read_ledger(folder.store, 0, 0, 5, list_batch(folder.store, 0))
    assert (sorted(read.outcomes), read.damaged) == ([0, 1], 1)
    assert [o.outcome for o in folder.outcomes()][:3] == [S, S, U]


def test_fields_of_a_later_minor_version_are_passed_over(folder: JobFolder) -> None:
    started(folder)
    folder.store.append("b/0/a0.jsonl", b'{"i":0,"k":"0","o":"succeeded","n":1,"zz":[1]}\n')
    assert next(folder.outcomes()).outcome is S


@pytest.mark.parametrize("name", ["job.json", "lease.json", "b/0/a0.jsonl", "b/0/a0.end", "report.json"])
def test_a_newer_format_is_refused_naming_both_versions(folder: JobFolder, name: str) -> None:
    started(folder)
    folder.store.put(name, b'{"format": 2}\n')
    with pytest.raises(StorageError, match=r"format 2.*up to format 1"):
        {
            "job.json": JobFolder(folder.url).read_job,
            "lease.json": folder.read_lease,
            "report.json": folder.read_report,
        }.get(name, lambda: folder.close_attempt(0, 5, 0))()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"format": "1"}', b'{"format":1,"counter":-1}', b"\xff"]
)
def test_a_sign_of_life_that_makes_no_sense_is_an_error_that_names_it(folder: JobFolder, content: bytes) -> None:
    folder.store.put("lease.json", content)
    with pytest.raises(StoreCorruptError, match=r"lease\.json"):
        folder.read_lease()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"format":1,"counter":-1}', b'{"format":1,"counter":"9"}', b"\xff", b"x" * (2 << 20)],
)
def test_a_childs_sign_of_life_that_makes_no_sense_is_none(folder: JobFolder, content: bytes) -> None:
    assert folder.read_alive(0, 0) is None
    folder.store.put("b/0/a0.alive", content)
    assert folder.read_alive(0, 0) is None
    assert folder.attempts() == {0: AttemptFiles()}, "it is no trace of an attempt that began"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"format":1,"reason":7}', b"\xff", b"x" * (2 << 20)])
def test_why_an_attempt_was_to_end_may_make_no_sense_and_says_all_the_same_that_it_was(
    folder: JobFolder, content: bytes
) -> None:
    assert folder.read_recalled(0, 0) is None
    folder.store.put("b/0/a0.recalled", content)
    assert folder.read_recalled(0, 0) == ("an earlier parent run gave it up", False)
    assert folder.attempts() == {0: AttemptFiles(recalled={0})}


def test_why_an_attempt_was_to_end_is_one_line_and_the_first_word_stands(folder: JobFolder) -> None:
    folder.write_recalled(0, 0, "too\nlong " * 100, True)
    folder.write_recalled(0, 0, "another", False)
    said = folder.read_recalled(0, 0)
    assert said is not None
    assert said[0].startswith("too long too long")
    assert (len(said[0]) <= 300, said[1]) == (True, True)


def test_an_object_of_absurd_size_is_not_read(folder: JobFolder) -> None:
    folder.store.put("lease.json", b'{"format":1,"counter":1,"epoch":1,"x":"' + b"x" * (2 << 20) + b'"}')
    with pytest.raises(StoreCorruptError, match="larger than"):
        folder.read_lease()


@pytest.mark.parametrize(
    "content", [b"", b"stop!", b'{"format": 9}', b'{"format":1,"mode":"explode"}', b"x" * (2 << 20)]
)
def test_a_stop_that_cannot_be_read_stops(folder: JobFolder, content: bytes) -> None:
    folder.store.put("stop.json", content)
    stop = folder.read_stop()
    assert stop is not None
    assert stop.mode is StopMode.CANCEL


@pytest.mark.parametrize(
    "end",
    [
        b"",
        b"{}",
        b'{"format":1,"reason":"bored","counts":{}}',
        b'{"format":1,"reason":"completed","counts":{"succeeded":-1}}',
        b'{"format":1,"reason":"completed","counts":{"succeeded":9000}}',
        b'{"format":1,"reason":"completed","counts":{"succeeded":1},"in_progress":"all"}',
        b'{"format":1,"reason":"completed","counts":{"errors":{"E":"x"}}}',
        b'{"format":1,"reason":"completed","uniform":"perhaps"}',
    ],
)
def test_a_last_word_that_makes_no_sense_is_as_none_and_the_records_decide(folder: JobFolder, end: bytes) -> None:
    started(folder, 0, 1)
    folder.store.put("b/0/a0.end", end)
    reading = folder.close_attempt(0, 5, 0)
    assert (reading.counts.succeeded, reading.unknown, reading.not_started, reading.ended) == (2, 3, 0, False)
    assert folder.close_attempt(0, 5, 0) == reading


def test_changed_items_are_refused(folder: JobFolder) -> None:
    batch = folder.batch(0)
    data = folder.store.get(batch.part)
    assert data is not None
    folder.store.put(batch.part, data.replace(b"3", b"4"))
    with pytest.raises(StoreCorruptError, match="changed after the job was staged"):
        folder.read_items(batch)
    folder.store.delete(batch.part)
    with pytest.raises(StoreCorruptError, match="is gone"):
        folder.read_items(batch)
    assert [o.key for o in folder.outcomes()] == [str(i) for i in range(10)]  # a report is possible all the same


@pytest.mark.parametrize(
    "part", ["../../secret", "/etc/passwd", "job.json", "items/n/../../job.json", "items/n/x.jsonl"]
)
def test_a_reference_reads_staged_items_and_nothing_else(folder: JobFolder, part: str) -> None:
    with pytest.raises(StoreCorruptError, match="no name of staged items"):
        folder.read_items(Batch(0, 0, 1, part, 0, 10, ""))


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"[0,5]",
        b'[0,5,0,0,30,"h","g","more"]',
        b'[0,0,0,0,30,"h",null]',
        b'[0,5,-1,0,30,"h",null]',
        b'[0,5,"../x",0,30,"h",null]',
    ],
)
def test_a_changed_index_is_an_error(folder: JobFolder, line: bytes) -> None:
    folder.store.put("items/n/index-00000.jsonl", line + b"\n" + line + b"\n")
    with pytest.raises(StoreCorruptError, match="malformed"):
        folder.batch(0)
    folder.store.put("items/n/index-00000.jsonl", line + b"\n")
    with pytest.raises(StoreCorruptError, match="changed after"):
        list(folder.batches())


def test_a_hostile_nonce_in_the_job_reaches_no_other_file(folder: JobFolder) -> None:
    data = json.loads(folder.store.get("job.json") or b"")
    folder.store.put("job.json", json.dumps({**data, "nonce": "../../x"}).encode())
    with pytest.raises((StoreCorruptError, InternalError)):
        JobFolder(folder.url).batch(0)


def test_foreign_files_among_the_attempts_are_passed_over(folder: JobFolder) -> None:
    for name in ("b/0/notes.txt", "b/x/a0.end", "b/0/a0.1.end", "b/0/deep/a0.end", "b/99999999999999/a0.end"):
        folder.store.put(name, b"?")
    assert folder.attempts() == {}
    assert [o.outcome for o in folder.outcomes()] == [N] * 10


def test_a_result_that_is_not_json_is_refused_before_it_is_written(folder: JobFolder) -> None:
    ledger = started(folder)
    with pytest.raises(ValueError, match=r"at r\.when: a datetime is not JSON"):
        ledger.record(OutcomeRecord(0, "0", S, result={"when": datetime(2025, 1, 1)}))
    ledger.end(EndRecord(EndReason.COMPLETED, Counts()))
    assert folder.read_end(0, 0) is not None


def test_a_later_attempt_carries_the_doubt_of_a_lost_one(folder: JobFolder) -> None:
    started(folder, 0)
    folder.close_attempt(0, 5, 0)
    second = Ledger(folder, 0, 1, 5)
    second.open()
    second.record(OutcomeRecord(1, "1", S))
    second.end(EndRecord(EndReason.STOPPED, Counts(succeeded=2)))
    reading = folder.close_attempt(0, 5, 1)
    assert (reading.counts.succeeded, reading.unknown, reading.not_started) == (2, 3, 0)
    assert [o.outcome for o in folder.outcomes()][:5] == [S, S, U, U, U]
