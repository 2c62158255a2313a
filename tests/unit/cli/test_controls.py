"""Commands that act on a job that exists, on the folders that jobs leave."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.app import run
from orchestrator.cli.controls import retry_request
from orchestrator.cli.looking import job_status
from orchestrator.core.killswitch import DEFAULT_KILL_SWITCH
from orchestrator.core.model import StopCause, StopMode, StopRecord
from orchestrator.errors import ConfigurationError
from orchestrator.store import JobFolder, job_folder_url
from orchestrator.store.controls import change
from orchestrator.testing import simulate

STOP = StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "", "")


def bad_threes(item: int) -> int:
    if item % 3 == 0:
        raise ValueError("three")
    return item


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "jobs")


def job(root: str, **request: Any) -> JobFolder:
    """A job over ten items of which four fail."""
    simulate(bad_threes, range(10), job_id="first", storage=root, batch_size=4, **request)
    return JobFolder(job_folder_url(root, "first"))


def test_a_retry_runs_what_is_left_otherwise_as_before(root: str):
    folder = job(root, max_in_flight=3, tags=["nightly"])
    request = retry_request(folder, "first", "all", None, None)
    assert request is not None
    assert request["items"] == "job:first?outcome=failed,unknown,not_started"
    assert (request["deployment"], request["batch_size"], request["max_in_flight"]) == ("simulated/batches", 4, 3)
    again = simulate(lambda item: item, job_id="second", storage=root, **request)
    assert again.report.items.total == again.report.items.succeeded == 4
    assert [record.key for record in again.folder.outcomes()] == ["0", "3", "6", "9"]
    assert again.folder.read_job().previous == "first"


def test_a_retry_may_go_to_another_deployment_in_other_batches(root: str):
    request = retry_request(job(root), "first", "failed", "heavy/default", 1)
    assert request is not None
    assert (request["deployment"], request["batch_size"]) == ("heavy/default", 1)
    assert request["items"] == "job:first?outcome=failed"


def test_nothing_left_is_nothing_to_do(root: str, capsys: pytest.CaptureFixture[str]):
    job(root)
    assert run(["retry", "first", "--only", "unknown", "--storage", root]) == 0
    assert "left no such items" in capsys.readouterr().out


def test_items_that_lost_their_group_need_a_deployment(root: str):
    items = [{"size": "big", "id": n} for n in range(4)]
    request = {"select": "id", "group_by": "size", "deployment": {"*": "simulated/batches"}}
    simulate(bad_threes, items, job_id="first", storage=root, fail_if=None, **request)
    folder = JobFolder(job_folder_url(root, "first"))
    with pytest.raises(ConfigurationError, match="lost the field"):
        retry_request(folder, "first", "all", None, None)
    found = retry_request(folder, "first", "all", "simulated/batches", None)
    assert found is not None
    assert simulate(lambda item: item, job_id="second", storage=root, **found).report.items.succeeded == 2


def running(root: str) -> JobFolder:
    """A job whose parent is not done with it."""
    folder = job(root)
    folder.store.delete("report.json")
    return folder


def test_a_job_that_is_not_over_is_not_retried(root: str, capsys: pytest.CaptureFixture[str]):
    running(root)
    assert run(["retry", "first", "--storage", root]) == 2
    assert "is not over" in capsys.readouterr().err


def wishes(folder: JobFolder) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in wish.items() if k not in ("format", "who", "asked", "reason")}
        for _, wish in folder.read_controls()
    ]


def test_scale_and_pause_leave_wishes_in_the_folder(root: str, capsys: pytest.CaptureFixture[str]):
    folder = running(root)
    assert run(["scale", "first", "--max-in-flight", "20", "--storage", root, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["max_in_flight"], said["control"]) == (20, 1)
    assert "max_in_flight changed from 8 to 20 by " in said["said"]
    assert run(["pause", "first", "--reason", "the disk is full", "--storage", root]) == 0
    out = capsys.readouterr().out
    assert "paused by " in out
    assert "(the disk is full); `orchestrator resume first` goes on" in out
    assert run(["scale", "first", "--kill-switch", "failed >= 3", "--storage", root]) == 0
    assert "kill switch changed to failed >= 3" in capsys.readouterr().out
    assert run(["scale", "first", "--kill-switch", "none", "--max-in-flight", "2", "--storage", root]) == 0
    assert wishes(folder) == [
        {"max_in_flight": 20},
        {"paused": True},
        {"kill_switch": "failed >= 3"},
        {"kill_switch": None, "max_in_flight": 2},
    ]
    assert all(wish["who"] and wish["asked"].endswith("UTC") for _, wish in folder.read_controls())


def test_what_was_told_twice_is_written_once(root: str, capsys: pytest.CaptureFixture[str]):
    folder = running(root)
    for _ in range(2):
        assert run(["pause", "first", "--storage", root]) == 0
    assert "it is paused already, by " in capsys.readouterr().out
    assert run(["scale", "first", "--max-in-flight", "8", "--storage", root, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["control"] is None
    assert wishes(folder) == [{"paused": True}]


def test_what_many_tell_at_once_is_all_there(root: str):
    folder = running(root)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: change(folder, max_in_flight=n, who=f"person {n}"), range(10, 30)))
    assert sorted(wish["max_in_flight"] for wish in wishes(folder)) == list(range(10, 30))


def test_a_stray_control_takes_no_other_one_out_of_reach(root: str):
    folder = running(root)
    folder.store.put("control/99999.json", b"{}")
    change(folder, max_in_flight=3, who="ada")
    assert wishes(folder) == [{"max_in_flight": 3}]


def test_a_kill_switch_that_does_not_parse_is_shown_where_and_nothing_is_written(
    root: str, capsys: pytest.CaptureFixture[str]
):
    folder = running(root)
    assert run(["scale", "first", "--max-in-flight", "3", "--kill-switch", "failed >= >", "--storage", root]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: kill_switch: ")
    assert "^" in error
    assert wishes(folder) == []


def test_status_says_what_was_changed_and_by_whom(root: str, capsys: pytest.CaptureFixture[str]):
    folder = running(root)
    change(folder, max_in_flight=3, who="ada on box")
    change(folder, paused=True, who="ada on box", reason="lunch")
    facts = job_status(folder, watch=False)
    assert (facts["max_in_flight"], facts["paused"]) == (3, True)
    assert facts["paused_by"].startswith("by ada on box at ")
    assert "paused by ada on box at " in facts["reason"]
    assert "(lunch)" in facts["reason"]
    assert len(facts["changes"]) == 2
    assert facts["kill_switch"] == str(DEFAULT_KILL_SWITCH)


def test_a_job_that_is_being_stopped_takes_no_more_controls(root: str, capsys: pytest.CaptureFixture[str]):
    running(root)
    assert run(["stop", "first", "--drain", "--reason", "enough", "--storage", root]) == 0
    assert "let finish" in capsys.readouterr().out
    assert run(["pause", "first", "--storage", root]) == 2
    assert "is being stopped (enough; command line, " in capsys.readouterr().err


def test_a_stop_becomes_stronger_and_says_what_was_there(root: str, capsys: pytest.CaptureFixture[str]):
    folder = running(root)
    assert run(["stop", "first", "--drain", "--reason", "enough", "--storage", root]) == 0
    assert run(["stop", "first", "--cancel", "--reason", "now", "--storage", root]) == 0
    shown = capsys.readouterr()
    assert "a stop becomes stronger: enough (drain, command line, " in shown.err
    assert (folder.read_stop() or STOP).reason == "now"
    assert run(["stop", "first", "--drain", "--storage", root, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mode"] == "cancel"
    assert run(["stop", "first", "--drain", "--cancel", "--storage", root]) == 2


@pytest.mark.parametrize("flags", [["scale", "first", "--max-in-flight", "0"], ["scale", "first"], ["pause", "other"]])
def test_a_wrong_wish_is_refused(root: str, flags: list[str], capsys: pytest.CaptureFixture[str]):
    running(root)
    assert run([*flags, "--storage", root]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("flags", [["scale", "first", "--max-in-flight", "2"], ["pause", "first"]])
def test_a_job_that_is_over_cannot_be_changed(root: str, flags: list[str], capsys: pytest.CaptureFixture[str]):
    job(root)
    assert run([*flags, "--storage", root]) == 2
    assert "is over" in capsys.readouterr().err
