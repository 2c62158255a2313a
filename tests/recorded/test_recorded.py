"""Jobs that happened: what was decided then is decided today.

A difference here is a change of how running jobs behave. When it is meant, record the simulated jobs anew
(`python -m tests.recorded.make`) and remove, with the reason, what came from production.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli.app import run
from orchestrator.core.machine.replay import Replay
from orchestrator.core.machine.wire import COMMAND_CODES, EVENT_CODES, Recorded
from orchestrator.store.journal import Journal, file_lines

FILES = sorted(Path(__file__).parent.glob("*.jsonl"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_same_is_decided_today(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["replay", str(path)])
    said = capsys.readouterr()
    assert code == 0, said.out + said.err
    assert "the same decisions" in said.out
    assert said.err == ""  # nothing missing, nothing damaged, nothing changed


def test_the_recorded_jobs_show_what_can_happen() -> None:
    seen: set[type] = set()
    for path in FILES:
        for recorded in Journal(file_lines(path), path.name):
            assert isinstance(recorded, Recorded)
            seen |= {type(recorded.event), *map(type, recorded.commands or ())}
    rare = {"SubmissionRefused", "CloseFailed", "FellSilent", "Recalled", "Superseded", "StandDown", "SubmissionAbsent",
            "Spared", "Resolve", "Recall"}  # fmt: skip
    assert {kind.__name__ for kind in {*EVENT_CODES, *COMMAND_CODES} - seen} <= rare


def test_no_recorded_job_holds_a_text_of_anybody() -> None:
    for path in FILES:
        text = path.read_text()
        assert not any(word in text for word in ("confidential", "secret", "Ann", "Bob"))


@pytest.mark.parametrize("path", FILES[:3], ids=lambda path: path.stem)
def test_a_machine_that_decided_otherwise_would_be_caught(path: Path) -> None:
    journal = Journal(file_lines(path), path.name)
    machine = Replay(replace(journal.header.setup, max_in_flight=1))  # as if the window were kept otherwise today
    for recorded in journal:
        assert isinstance(recorded, Recorded)
        machine.play(recorded)
    assert machine.difference is not None
