"""Commands that act on a job that exists, on the folders that jobs leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.app import run
from orchestrator.cli.controls import retry_request
from orchestrator.errors import ConfigurationError
from orchestrator.store import JobFolder, job_folder_url
from orchestrator.testing import simulate


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


def test_scale_and_pause_leave_wishes_in_the_folder(root: str, capsys: pytest.CaptureFixture[str]):
    folder = running(root)
    assert run(["scale", "first", "--max-in-flight", "20", "--storage", root, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["max_in_flight"] == 20
    assert run(["pause", "first", "--storage", root]) == 0
    assert "resume first" in capsys.readouterr().out
    wishes = [{k: v for k, v in wish.items() if k != "format"} for _, wish in folder.read_controls()]
    assert wishes == [{"max_in_flight": 20}, {"paused": True}]


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
