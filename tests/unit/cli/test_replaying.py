"""`orchestrator replay` on job folders as parents leave them."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli.app import run
from orchestrator.core.machine import events as ev
from orchestrator.core.machine.wire import Recorded
from orchestrator.engine.faults import Fate, Faults
from orchestrator.settings import Settings
from orchestrator.store import JobFolder
from orchestrator.store.journal import Gap, Journal, JournalWriter, open_journal, parents
from orchestrator.testing import simulate

SECRET = "the customer's name"


@pytest.fixture(autouse=True)
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ORCHESTRATOR_STORAGE", str(tmp_path / "jobs"))
    return str(tmp_path / "jobs")


def process(n: int) -> int:
    if n == 3:
        raise ValueError(SECRET)
    return n


def make(storage: str, **request: object) -> JobFolder:
    """Twelve items in four batches; the first attempt of the second batch dies, item 3 fails."""
    dies = Faults(fates=lambda s: Fate(crash_after=0.15) if s.key.endswith("/1/0") else None)
    logging.getLogger("orchestrator.testing").setLevel(logging.CRITICAL)
    return simulate(
        process, range(12), batch_size=3, max_in_flight=2, job_id="numbers", storage=storage, faults=dies,
        fail_if=None, **request,
    ).folder  # type: ignore[arg-type]  # fmt: skip


def events_of(folder: JobFolder) -> list[Recorded]:
    return [e for e in journal_of(folder) if isinstance(e, Recorded)]


def journal_of(folder: JobFolder) -> Journal:
    return open_journal(folder.store, parents(folder.store)[1])


def rewrite(folder: JobFolder, events: list[Recorded]) -> None:
    """The same job with other recorded events."""
    header = journal_of(folder).header
    folder.store.delete("events/1.jsonl")
    JournalWriter(folder.store, header).write(events)


def otherwise(folder: JobFolder) -> Recorded:
    """Make one decision of the recorded job another one."""
    events = events_of(folder)
    place = next(n for n, e in enumerate(events) if any(isinstance(c, ev.Settle) for c in e.commands or ()))
    events[place] = replace(events[place], commands=(events[place].commands or ())[:-1])
    rewrite(folder, events)
    return events[place]


def test_a_job_replays_to_the_same_decisions(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    make(storage)
    assert run(["replay", "numbers"]) == 0
    said = capsys.readouterr()
    assert "the job is over: completed" in said.out
    assert said.out.endswith("the same decisions\n")
    assert said.err == ""


def test_the_story_of_a_batch_says_when_what_happened_and_what_was_decided(storage, capsys):
    make(storage)
    assert run(["replay", "numbers", "--batch", "2"]) == 0
    story = capsys.readouterr().out
    place = 0
    for part in (
        "Prefect has its child run", "seen Crashed", "-> read its outcomes (attempt 1", "1 failed (first: item 3, "
        f"ValueError: {SECRET}), 2 unknown", "-> attempt 1 is lost, try again", "-> create its child run (attempt 2)",
        "seen Running", "-> read its outcomes (attempt 2", "2 succeeded, 1 failed", "-> it is over: completed",
        "-> the job is over: completed", "the same decisions",
    ):  # fmt: skip
        place = story.index(part, place)


def test_the_first_difference_is_shown_and_ends_with_1(storage, capsys):
    changed = otherwise(make(storage))
    assert run(["replay", "numbers"]) == 1
    out = capsys.readouterr().out
    assert f"event {changed.number} at {changed.at:.3f} s" in out
    assert "decided then:" in out
    assert "decided now:" in out
    assert "the same decisions" not in out


def test_json_says_the_same(storage, capsys):
    folder = make(storage)
    assert run(["replay", "numbers", "--json", "--batch", "1"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["same"], facts["batch"], facts["parents"][0]["events"]) == (True, 1, len(events_of(folder)))
    assert facts["story"][0]["decided"] == ["create its child run (attempt 1)"]
    changed = otherwise(folder)
    assert run(["replay", "numbers", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["parents"][0]["difference"]["event"] == changed.number


def test_a_torn_last_line_is_fine_and_said(storage, capsys):
    folder = make(storage)
    data = folder.store.get("events/1.jsonl") or b""
    folder.store.put("events/1.jsonl", data[: data.rindex(b',["F"') - 5])
    assert run(["replay", "numbers"]) == 0
    said = capsys.readouterr()
    assert "no end is recorded" in said.out
    assert "torn" in said.err


def test_a_gap_is_said_and_ends_the_comparison(storage, capsys):
    folder = make(storage)
    events = events_of(folder)
    rewrite(folder, events[:6] + events[9:])
    assert run(["replay", "numbers"]) == 0
    said = capsys.readouterr()
    assert "3 events are missing after event 6" in said.err
    assert "the same up to event 6" in said.out


def test_what_was_changed_since_is_said(storage, capsys):
    folder = make(storage)
    data = folder.store.get("events/1.jsonl") or b""
    folder.store.put("events/1.jsonl", data.replace(b'"Late"', b'"Lat"').replace(b"SCHEDULED", b"PENDING", 1))
    run(["replay", "numbers"])
    assert "were changed after they were written" in capsys.readouterr().err


def test_a_saved_job_replays_from_its_file_and_holds_no_text_of_anybody(storage, tmp_path, capsys):
    make(storage)
    path = tmp_path / "numbers.jsonl"
    assert run(["replay", "numbers", "--save", str(path)]) == 0
    capsys.readouterr()
    assert run(["replay", str(path), "--batch", "2"]) == 0
    assert "the same decisions" in capsys.readouterr().out
    assert SECRET not in path.read_text()
    assert "ValueError" in path.read_text()  # decisions may rest on it


def test_a_saved_job_keeps_its_difference(storage, tmp_path, capsys):
    changed = otherwise(make(storage))
    path = tmp_path / "numbers.jsonl"
    assert run(["replay", "numbers", "--save", str(path)]) == 0
    assert run(["replay", str(path)]) == 1
    assert f"event {changed.number} at" in capsys.readouterr().out
    assert SECRET not in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["nobody"], "orchestrator status"),
        (["numbers", "--batch", "0"], "there is no batch 0"),
        (["numbers", "--batch", "5"], "there is no batch 5"),
        (["numbers", "--parent", "2"], "no recorded parent run 2"),
        (["numbers", "--save", "x.txt"], "must end in .jsonl"),
        (["./nowhere.jsonl"], "cannot be read"),
        (["../up"], "cannot name a job"),
    ],
)
def test_a_wrong_question_is_refused_with_the_remedy(storage, capsys, arguments, remedy):
    make(storage)
    assert run(["replay", *arguments]) == 2
    assert remedy in capsys.readouterr().err


def test_a_job_that_recorded_nothing_says_why(storage, capsys):
    make(storage, settings=Settings(record_events=False))
    assert run(["replay", "numbers"]) == 2
    assert "ORCHESTRATOR_RECORD_EVENTS" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"garbage\n", b'{"format":9}\n', b"\x00\xff" * 50, b"[[[[\n" * 9])
def test_what_is_no_recording_is_refused_in_one_line(storage, tmp_path, capsys, content):
    path = tmp_path / "odd.jsonl"
    path.write_bytes(content)
    assert run(["replay", str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1


def test_a_file_that_exists_is_not_overwritten(storage, tmp_path, capsys):
    make(storage)
    path = tmp_path / "mine.jsonl"
    path.write_text("mine")
    assert run(["replay", "numbers", "--save", str(path)]) == 2
    assert path.read_text() == "mine"


def test_what_is_missing_cannot_be_saved(storage, tmp_path, capsys):
    folder = make(storage)
    events = events_of(folder)
    rewrite(folder, events[:6] + events[9:])
    assert any(isinstance(e, Gap) for e in journal_of(folder))
    assert run(["replay", "numbers", "--save", str(tmp_path / "x.jsonl")]) == 2
    assert "missing" in capsys.readouterr().err
