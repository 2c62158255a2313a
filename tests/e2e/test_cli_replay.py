"""`orchestrator replay` as a program, on the folder of a job that is over; no Prefect anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from orchestrator.engine.faults import Faults, Rates
from orchestrator.testing import simulate


def program(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "ORCHESTRATOR_STORAGE": str(home / "jobs"), "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments], cwd=home, env=env, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip


def test_a_job_is_replayed_saved_and_replayed_from_its_file_without_prefect(tmp_path: Path) -> None:
    faults = Faults(seed=4, rates=Rates(unavailable=0.0))
    simulate(
        lambda n: 1 // (n % 6), range(60), batch_size=5, max_in_flight=3, job_id="nightly", faults=faults,
        kill_switch="failed >= 6", storage=str(tmp_path / "jobs"),
    )  # fmt: skip
    whole = program("replay", "nightly", home=tmp_path)
    assert (whole.returncode, whole.stderr) == (0, "")
    assert "the job is over: tripped" in whole.stdout
    story = program("replay", "nightly", "--batch", "1", home=tmp_path)
    assert "-> create its child run (attempt 1)" in story.stdout
    saved = program("replay", "nightly", "--save", "kept.jsonl", home=tmp_path)
    assert saved.returncode == 0, saved.stderr
    path = tmp_path / "kept.jsonl"
    assert program("replay", "kept.jsonl", home=tmp_path).returncode == 0
    path.write_text(path.read_text().replace('["Z",', '["A",', 1).replace('"completed",""]', '"completed"]', 1))
    other = program("replay", "kept.jsonl", home=tmp_path)
    assert other.returncode == 1
    assert "decided now:  " in other.stdout
    assert "were changed after they were written" in other.stderr
