"""What a process leaves in a local job folder when it dies, or when the disk is full."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from orchestrator.core.model import ItemOutcome
from orchestrator.store import JobFolder, JobRecord, StageOptions, parse_source, stage

_WRITER = """
import os, signal, sys
from orchestrator.core.model import ItemOutcome
from orchestrator.store import JobFolder, Ledger, OutcomeRecord
ledger = Ledger(JobFolder(sys.argv[1]), 0, 0, 1000)
ledger.open()
for i in range(500):
    ledger.record(OutcomeRecord(i, str(i), ItemOutcome.SUCCEEDED, result="x" * 50))
{end}
"""

_FULL = """
import resource, signal
from orchestrator.errors import StoreUnavailableError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = os.path.getsize(sys.argv[1] + "/b/0/a0.jsonl")
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 30, resource.RLIM_INFINITY))
refused = 0
for _ in range(2):
    try:
        ledger.record(OutcomeRecord(500, "500", ItemOutcome.SUCCEEDED, result="x" * 50))
    except StoreUnavailableError as e:
        refused += 1
        assert ledger.failure is e, "the failure is there to look at"
assert refused == 2, refused
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert ledger.record(OutcomeRecord(501, "501", ItemOutcome.SUCCEEDED))
assert ledger.failure is None
"""


def _job(path: Path) -> JobFolder:
    folder = JobFolder(str(path / "j"))
    staged = stage(parse_source("range:0:1000"), folder, "n", StageOptions(batch_size=1000))
    folder.create_job(JobRecord("j", "n", "2025-01-01T00:00:00Z", {}, staged.total, staged.batches))
    return folder


def _run(code: str, folder: JobFolder) -> int:
    return subprocess.run([sys.executable, "-c", code, folder.url], timeout=60, check=False).returncode


def test_a_killed_process_loses_no_outcome_that_it_recorded(tmp_path: Path) -> None:
    folder = _job(tmp_path)
    assert _run(_WRITER.format(end="os.kill(os.getpid(), signal.SIGKILL)"), folder) == -signal.SIGKILL
    assert folder.close_attempt(0, 1000, 0).counts.succeeded == 500


def test_a_full_disk_fails_the_record_and_spoils_no_other(tmp_path: Path) -> None:
    folder = _job(tmp_path)
    assert _run(_WRITER.format(end=_FULL), folder) == 0
    outcomes = list(folder.outcomes())
    assert [o.outcome for o in outcomes[:500]] == [ItemOutcome.SUCCEEDED] * 500
    assert outcomes[500].outcome is ItemOutcome.UNKNOWN
    assert outcomes[501].outcome is ItemOutcome.SUCCEEDED
