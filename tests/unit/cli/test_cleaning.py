"""`orchestrator cleanup`: it lists, asks, acts, and says what it could not do. No Prefect is there."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path

import pytest

from orchestrator.cli.app import run
from orchestrator.store import JobFolder, JobRecord

DAY = 86_400.0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two jobs that are over, since 40 days and since now, and one that is not."""
    monkeypatch.setenv("ORCHESTRATOR_STORAGE", str(tmp_path))
    for name in ("old", "new", "begun"):
        folder = JobFolder(str(tmp_path / name))
        folder.create_job(JobRecord(name, "n", "2025-01-01T00:00:00+00:00", {}, 0, 0))
        if name != "begun":
            folder.write_report({"verdict": "completed"})
    for path in (tmp_path / "old").iterdir():
        os.utime(path, (time.time() - 40 * DAY,) * 2)
    return tmp_path


def names(storage: Path) -> list[str]:
    return sorted(path.name for path in storage.iterdir())


def test_without_a_terminal_it_lists_and_says_how_to_act(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cleanup"]) == 3
    said = capsys.readouterr()
    assert "remove  folder of job old  over for 40 days  40 days" in said.out
    assert "nothing was done; --yes acts" in said.err
    assert "Prefect could not be asked" in said.err
    assert "Traceback" not in said.err
    assert names(storage) == ["begun", "new", "old"]


def test_at_a_terminal_it_asks(
    storage: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", Terminal("\n"))
    assert run(["cleanup"]) == 3
    assert "do this? [y/N]" in capsys.readouterr().err
    assert names(storage) == ["begun", "new", "old"]
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert run(["cleanup"]) == 3
    assert "folder of job old: removed, " in capsys.readouterr().out
    assert names(storage) == ["begun", "new"]


def test_it_acts_without_asking_when_told_so_and_twice_is_once(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cleanup", "--yes", "--json"]) == 3
    said = json.loads(capsys.readouterr().out)
    assert (said["jobs"], said["acted"]) == (3, True)
    assert "no Prefect server is configured" in said["prefect_away"]
    (finding,) = said["findings"]
    assert (finding["act"], finding["job_id"], finding["done"]["ok"]) == ("remove", "old", True)
    assert names(storage) == ["begun", "new"]
    assert run(["cleanup", "--yes", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["findings"] == []


def test_a_dry_run_only_lists(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cleanup", "--dry-run", "--older-than", "0", "--json"]) == 3
    said = json.loads(capsys.readouterr().out)
    assert [finding["job_id"] for finding in said["findings"]] == ["old", "new"]
    assert not said["acted"]
    assert names(storage) == ["begun", "new", "old"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--older-than", "30"], "older_than: '30' is no span of time; write 12h, 30d or 8w"),
        (["--settle-after", "soon"], "settle_after: 'soon' is no span of time"),
        (["--older-than", "0d"], "older_than: 0 removes the folder of every job that is over"),
        (["--dry-run", "--yes"], "--dry-run and --yes exclude each other"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_touched(
    arguments: list[str], why: str, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cleanup", *arguments]) == 2
    assert why in capsys.readouterr().err
    assert names(storage) == ["begun", "new", "old"]


def test_never_removes_nothing_and_everything_means_everything(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cleanup", "--older-than", "never", "--yes"]) == 3
    assert names(storage) == ["begun", "new", "old"]
    assert run(["cleanup", "--older-than", "0", "--yes"]) == 3
    assert names(storage) == ["begun"]
