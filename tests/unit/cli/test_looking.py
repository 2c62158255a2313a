"""`status stop report results` on a job folder as parents and children leave it; no Prefect anywhere."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cli.app import run
from orchestrator.core.model import Counts, EndReason, Failure, ItemOutcome, StopCause, StopMode, StopRecord, Verdict
from orchestrator.core.report import BatchCounts, ErrorCluster, ItemCounts, KillSwitchReport, Report
from orchestrator.store import EndRecord, JobFolder, JobRecord, Ledger, OutcomeRecord, job_folder_url
from orchestrator.store.sources import parse_source
from orchestrator.store.staging import StageOptions, stage


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORCHESTRATOR_STORAGE", str(tmp_path / "jobs"))
    monkeypatch.setenv("ORCHESTRATOR_BEAT_SECONDS", "0.1")
    return tmp_path / "jobs"


@pytest.fixture
def folder(storage: Path) -> JobFolder:
    """Six items in three batches: one batch ended (a failure in it), one is being worked on, one is not begun."""
    folder = JobFolder(job_folder_url(str(storage), "numbers"))
    staged = stage(parse_source("range:10:16"), folder, "abc", StageOptions(batch_size=2))
    spec = {"job": {"deployment": "numbers/local"}}
    folder.create_job(JobRecord("numbers", "abc", "2026-01-02T03:04:05+00:00", spec, staged.total, staged.batches))
    ended = Ledger(folder, 0, 0, 2)
    ended.open()
    failure = Failure(1, "1", "ValueError", "odd\tnumber")
    ended.record(OutcomeRecord(0, "0", ItemOutcome.SUCCEEDED, result={"double": 20}, batch=0, attempt=0))
    ended.record(
        OutcomeRecord(1, "1", ItemOutcome.FAILED, error_type="ValueError", error_text="odd", batch=0, attempt=0)
    )
    ended.end(EndRecord(EndReason.COMPLETED, Counts(1, 1, 1, {"ValueError": 1}, failure)))
    return folder


@pytest.fixture
def alive(folder: JobFolder) -> Iterator[None]:
    """A parent that gives signs of life."""
    over = threading.Event()

    def beat() -> None:
        counter = 0
        while not over.wait(0.05):
            counter += 1
            folder.write_lease(counter, 1, "stop")

    thread = threading.Thread(target=beat)
    thread.start()
    yield
    over.set()
    thread.join()


def finish(folder: JobFolder, verdict: Verdict = Verdict.TRIPPED) -> Report:
    report = Report(
        job_id="numbers",
        verdict=verdict,
        failed_by_rule=False,
        reason="failed >= 1",
        deployment="numbers/local",
        seconds=2.5,
        items=ItemCounts(6, 1, 1, 2, 2),
        batches=BatchCounts(3, 1, 0, 1, 0, 1, 0),
        kill_switch=KillSwitchReport("failed >= 1", True, "failed >= 1", {"failed": 1.0}),
        errors=(ErrorCluster("ValueError", 1, "odd"),),
        storage=folder.url,
    )
    folder.write_report(report.to_json())
    return report


def test_the_status_of_a_running_job_counts_what_its_ended_batches_say(
    folder: JobFolder, alive: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", "numbers", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["state"] == "running"
    assert facts["items"] == {"total": 6, "succeeded": 1, "failed": 1}
    assert facts["batches"] == {"total": 3, "ended": 1}
    assert facts["deployment"] == "numbers/local"


def test_a_job_whose_parent_is_silent_is_interrupted_and_status_says_how_to_go_on(
    folder: JobFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.write_lease(7, 1, "stop")
    assert run(["status", "numbers"]) == 0
    out = capsys.readouterr().out
    assert "interrupted" in out
    assert "orchestrator resume numbers" in out


def test_status_without_a_job_lists_the_newest_first(
    folder: JobFolder, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = JobFolder(job_folder_url(str(storage), "empty"))
    newer.create_job(JobRecord("empty", "n", "2026-02-02T03:04:05+00:00", {}, 0, 0))
    (storage / "not-a-job").mkdir()
    assert run(["status", "--json"]) == 0
    assert [f["job_id"] for f in json.loads(capsys.readouterr().out)] == ["empty", "numbers"]


def test_the_list_says_at_once_which_jobs_have_lost_their_parent(
    folder: JobFolder, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = JobFolder(job_folder_url(str(storage), "newer"))
    newer.create_job(JobRecord("newer", "n", "2026-02-02T03:04:05+00:00", {}, 0, 0))
    newer.write_lease(1, 1, "stop")
    folder.write_lease(7, 1, "stop")
    long_ago = time.time() - 90
    for path in (storage / "numbers").rglob("*"):
        os.utime(path, (long_ago, long_ago))
    assert run(["status", "--json"]) == 0
    listed = [(f["state"], f["reason"]) for f in json.loads(capsys.readouterr().out)]
    gone = "its parent run gives no sign of life; `orchestrator resume numbers` goes on with it"
    assert listed == [("running", ""), ("interrupted", gone)]


def test_a_stopped_job_whose_parent_is_gone_wants_only_its_report(
    folder: JobFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.write_lease(7, 1, "stop")
    long_ago = time.time() - 90
    for path in Path(folder.url).rglob("*"):
        os.utime(path, (long_ago, long_ago))
    folder.request_stop(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "Ctrl-C", "command line"))
    assert run(["status", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert listed["reason"].endswith("`orchestrator resume numbers` writes its report, and starts nothing")


def test_stop_writes_a_stop_that_holds_for_parent_and_children(
    folder: JobFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["stop", "numbers", "--drain", "--reason", "wrong input"]) == 0
    record = folder.read_stop()
    assert record is not None
    assert (record.mode, record.cause, record.reason) == (StopMode.DRAIN, StopCause.REQUESTED, "wrong input")
    assert "stop requested" in capsys.readouterr().out


def test_a_weaker_stop_does_not_replace_a_stronger_one_and_says_so(
    folder: JobFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["stop", "numbers", "--reason", "first"]) == 0
    assert run(["stop", "numbers", "--drain", "--reason", "second"]) == 0
    assert "a stop was already in force: first" in capsys.readouterr().err
    stop = folder.read_stop()
    assert stop is not None
    assert stop.mode is StopMode.CANCEL


def test_stop_waits_for_the_report_when_asked(folder: JobFolder, capsys: pytest.CaptureFixture[str]) -> None:
    def settle() -> None:
        while folder.read_stop() is None:
            time.sleep(0.01)
        finish(folder, Verdict.CANCELLED)

    thread = threading.Thread(target=settle)
    thread.start()
    assert run(["stop", "numbers", "--wait", "20", "--json"]) == 0
    thread.join()
    assert json.loads(capsys.readouterr().out)["report"]["verdict"] == "cancelled"


def test_a_finished_job_cannot_be_stopped(folder: JobFolder, capsys: pytest.CaptureFixture[str]) -> None:
    finish(folder)
    assert run(["stop", "numbers"]) == 2
    assert "is over (tripped)" in capsys.readouterr().err
    assert folder.read_stop() is None


@pytest.mark.parametrize(
    ("verdict", "code"), [(Verdict.COMPLETED, 0), (Verdict.ENOUGH, 0), (Verdict.TRIPPED, 1), (Verdict.CANCELLED, 4)]
)
def test_report_prints_the_report_and_ends_with_the_jobs_code(
    verdict: Verdict, code: int, folder: JobFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    report = finish(folder, verdict)
    assert run(["report", "numbers", "--json"]) == code
    assert Report.from_json(json.loads(capsys.readouterr().out)) == report
    assert run(["report", "numbers"]) == code
    assert "6 = 1 succeeded + 1 failed + 2 unknown + 2 not started" in capsys.readouterr().out


def test_a_report_that_does_not_exist_yet_names_the_commands_that_help(
    folder: JobFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", "numbers"]) == 2
    err = capsys.readouterr().err
    assert "orchestrator resume numbers" in err
    assert err.count("\n") == 1


def test_results_gives_each_item_once_in_input_order(folder: JobFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["results", "numbers", "--outcome", "all", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["index"] for line in lines] == list(range(6))
    assert [line["outcome"] for line in lines] == ["succeeded", "failed", *["pending"] * 4]
    assert lines[0]["result"] == {"double": 20}
    assert lines[1]["error"] == {"type": "ValueError", "text": "odd"}


def test_results_as_text_is_one_line_per_item_that_succeeded(
    folder: JobFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["results", "numbers"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ('0\tsucceeded\t{"double":20}\n', "")


def test_results_say_that_what_failed_is_not_among_them(folder: JobFolder, capsys: pytest.CaptureFixture[str]) -> None:
    finish(folder, Verdict.COMPLETED)
    assert run(["results", "numbers"]) == 0
    assert "that did not succeed (--outcome all)" in capsys.readouterr().err
    for shown in (["--outcome", "all"], ["--outcome", "succeeded"], ["--json"]):
        assert run(["results", "numbers", *shown]) == 0
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["status", "stop", "report", "results"])
def test_an_unknown_job_is_one_line_with_the_place_that_was_looked_at(
    command: str, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command, "nothing"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: job_id: there is no job 'nothing' in ")
    assert str(storage) in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["../etc", "a/b", "", "x" * 81])
def test_a_job_id_that_could_leave_the_storage_is_refused(
    name: str, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", name]) == 2
    assert capsys.readouterr().err.startswith("error: job_id: ")


def test_wrong_flags_and_settings_end_with_2_and_one_line(
    storage: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (["sttus"], ["status", "--nope"], ["results", "j", "--limit", "many"], ["report"]):
        assert run(arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    monkeypatch.delenv("ORCHESTRATOR_STORAGE")
    monkeypatch.setenv("ORCHESTRATOR_BEAT_SECONDS", "-1")
    assert run(["status", "j"]) == 2
    assert "ORCHESTRATOR_BEAT_SECONDS" in capsys.readouterr().err


def test_status_counts_what_running_batches_came_to_until_now(
    folder: JobFolder, alive: None, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = Ledger(folder, 1, 0, 2)
    begun.open()
    begun.record(OutcomeRecord(2, "2", ItemOutcome.SUCCEEDED, batch=1, attempt=0))
    assert run(["status", "numbers", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["state"], facts["items"]) == ("running", {"total": 6, "succeeded": 2, "failed": 1})
    begun.close()
