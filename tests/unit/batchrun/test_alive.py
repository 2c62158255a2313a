"""The child's sign of life: written whatever the items do, never at their cost; and what a run finds that slept."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.batchrun.run import arun_batch, run_batch
from orchestrator.core.model import EndReason
from orchestrator.errors import StoreUnavailableError
from orchestrator.store import JobFolder
from tests.support import eventually
from tests.unit.batchrun.jobs import Door, StagedJob, chosen

ALIVE = {"alive_seconds": 0.1, "fence_seconds": 0.05}


def hold(item: int) -> int:
    """A long item, at module level: a pool of processes must be able to find it."""
    time.sleep(1.0)
    return item


async def block(item: int) -> int:
    time.sleep(1.0)  # noqa: ASYNC251 - the point: it blocks its loop
    return item


@pytest.mark.parametrize("kind", ["sync", "async", "processes"])
def test_it_goes_on_while_a_long_item_runs(tmp_path: Path, kind: str) -> None:
    job = StagedJob(tmp_path, [1], **ALIVE)
    if kind == "async":
        ended = asyncio.run(arun_batch(job.reference(), chosen(block), Door()))
    else:
        executor = "processes" if kind == "processes" else "threads"
        ended = run_batch(job.reference(), chosen(hold, executor=executor), Door())
    assert ended.type == "COMPLETED"
    assert (job.folder.read_alive(0, 0) or 0) >= 4


def test_the_first_one_is_there_before_the_first_item(tmp_path: Path) -> None:
    job = StagedJob(tmp_path, [1], alive_seconds=15.0, fence_seconds=1.0)
    seen: list[int | None] = []

    def look(item: int) -> None:
        eventually(lambda: job.folder.read_alive(0, 0), 10, "the first sign of life")
        seen.append(job.folder.read_alive(0, 0))

    run_batch(job.reference(), chosen(look), Door())
    assert seen == [1]


def test_a_job_that_wants_none_gets_none(tmp_path: Path) -> None:
    job = StagedJob(tmp_path, [1], alive_seconds=0, fence_seconds=0.05)
    run_batch(job.reference(), chosen(lambda item: time.sleep(0.3)), Door())
    assert not list((tmp_path / "b" / "0").glob("*.alive"))


def test_storage_that_takes_no_sign_of_life_fails_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> None:
        raise StoreUnavailableError("away")

    monkeypatch.setattr(JobFolder, "write_alive", away)
    job = StagedJob(tmp_path, [1, 2], **ALIVE)
    assert run_batch(job.reference(), chosen(hold), Door()).type == "COMPLETED"
    assert job.outcomes() == ["succeeded", "succeeded"]


def test_it_is_one_small_object_however_long_the_run(tmp_path: Path) -> None:
    job = StagedJob(tmp_path, [1], **ALIVE)
    run_batch(job.reference(), chosen(hold), Door())
    (sign,) = (tmp_path / "b" / "0").glob("*.alive")
    assert re.fullmatch(r'\{"format":1,"counter":\d+\}', sign.read_text())


def test_a_run_that_was_given_up_while_it_slept_ends_when_it_wakes_and_starts_no_further_item(tmp_path: Path) -> None:
    """As a laptop that was closed, or a process that somebody stopped."""
    job = StagedJob(tmp_path / "job", list(range(200)), lease_seconds=3600.0, **ALIVE)
    script = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from orchestrator.batchrun.run import run_batch
        from tests.unit.batchrun.jobs import Door, StagedJob, chosen

        def process(item):
            with Path({str(tmp_path / "began")!r}).open("a") as file:
                file.write(f"{{time.time()}}\\n")
            time.sleep(0.1)

        job = StagedJob.opened({job.folder.url!r}, 200)
        print(run_batch(job.reference(), chosen(process), Door()).name)
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=os.environ)
    try:
        eventually(lambda: (tmp_path / "began").exists() and job.folder.read_alive(0, 0), 60, "a run at work")
        os.kill(process.pid, signal.SIGSTOP)
        eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, 10, "its standing still")
        still = job.folder.read_alive(0, 0)
        job.folder.close_attempt(0, 200, 0)  # what the parent does with a child that fell silent
        time.sleep(0.5)  # five signs long
        assert job.folder.read_alive(0, 0) == still
        os.kill(process.pid, signal.SIGCONT)
        woke = time.time()
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert said.strip() == "Revoked"
    end = job.folder.read_end(0, 0)
    assert end is not None
    assert end.reason is EndReason.REVOKED
    late = [float(at) - woke for at in (tmp_path / "began").read_text().split() if float(at) > woke]
    assert max(late, default=0.0) < 3.0, "items began long after it had been given up"
    assert len(late) < 60
