"""Child runs that do not reach the job folder, on a real server and worker: the job ends soon and says what to mend."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Any

import pytest
from prefect.filesystems import LocalFileSystem

from orchestrator import Verdict, orchestrate_sync
from orchestrator.core.model import UNREACHABLE
from orchestrator.engine.blocks import KEEP_SECONDS
from orchestrator.flows.call import resume_sync, stage_sync
from orchestrator.stack import Stack
from tests.integration.job_support import MARKS, Watched, check_cut_off, deploy_work, items
from tests.s3server import s3_server

pytestmark = [*MARKS, pytest.mark.timeout(480)]

ELSEWHERE = "/proc/self/cwd/jobs"
"""A folder of each process's own: the parent's is not the child's, as in a container that does not mount it."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="there is no /proc here")
def test_a_folder_that_child_runs_do_not_have_ends_the_job_and_names_both_sides(
    work: str, job: Watched, here: Path
) -> None:
    job.storage = ELSEWHERE
    report = orchestrate_sync(work, items(12), batch_size=1, max_in_flight=2, on_failure="return", **job.request)
    check_cut_off(job, report, work)
    assert f"{ELSEWHERE}/{job.job}" in report.reason
    assert "there is no such folder" in report.reason
    assert "volume" in report.reason
    assert report.items.not_started == 12
    assert len(job.children()) <= 6  # those in flight twice, and what took their places before the second was read
    first = job.children()[0]
    assert (first["state_type"], first["state_name"]) == ("FAILED", UNREACHABLE)
    stop = job.folder.read_stop()
    assert stop is not None
    assert stop.reason == report.reason, "whoever looks at the folder finds it too"


@pytest.mark.slow
def test_one_deployment_of_several_that_does_not_reach_it_ends_the_job_by_its_name(
    stack: Stack, job: Watched, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two groups: the child runs of one find another folder under the same URL, by their HOME."""
    name = f"home-{secrets.token_hex(3)}"
    LocalFileSystem(basepath="~/jobs").save(name, _sync=True)
    monkeypatch.setenv("HOME", str(here))
    light = deploy_work("light", job_variables={"env": {"HOME": str(here)}})
    heavy = deploy_work("heavy", job_variables={"env": {"HOME": str(here / "other")}})
    job.storage = f"block:local-file-system/{name}"
    what: list[dict[str, Any]] = [{"n": n, "size": "light" if n < 2 else "heavy"} for n in range(8)]
    report = orchestrate_sync(
        {"light": light, "heavy": heavy}, what, group_by="size", batch_size=1, max_in_flight=1, on_failure="return",
        **job.request,
    )  # fmt: skip
    assert (report.verdict, report.items.succeeded, report.items.not_started) == (Verdict.FAILED, 2, 6)
    assert f"child runs of {heavy} cannot work" in report.reason
    assert f"({here}/other/jobs/{job.job})" in report.reason
    assert f"({here}/jobs/{job.job})" in report.reason
    assert f"there is no such folder, only {here}" in report.reason
    assert "Give child runs the same folder under the same path" in report.reason


@pytest.mark.slow
def test_a_package_that_child_runs_lack_is_named(stack: Stack, job: Watched, tmp_path: Path) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "s3fs.py").write_text("raise ImportError('there is no s3fs here')\n")
    bare = deploy_work("bare", job_variables={"env": {"PYTHONPATH": str(tmp_path / "without")}})
    with s3_server():
        job.storage = f"s3://jobs/{secrets.token_hex(3)}"
        report = orchestrate_sync(bare, items(4), batch_size=1, max_in_flight=2, on_failure="return", **job.request)
        check_cut_off(job, report, bare)
    assert "install the extra 's3'" in report.reason
    assert "missing where child runs work" in report.reason


@pytest.mark.slow
def test_a_block_that_child_runs_do_not_find_is_named(work: str, stack: Stack, job: Watched, tmp_path: Path) -> None:
    name = f"gone-{secrets.token_hex(3)}"
    LocalFileSystem(basepath=str(tmp_path / "jobs")).save(name, _sync=True)
    job.storage = f"block:local-file-system/{name}"
    began = time.monotonic()
    stage_sync(work, items(3), batch_size=1, **job.request)
    LocalFileSystem.delete(name, _sync=True)
    report = resume_sync(job.job, storage=job.storage, on_failure="return")  # it has read the block a moment ago
    assert time.monotonic() - began < KEEP_SECONDS, "too slow a machine to tell"
    job.storage = str(tmp_path / "jobs")
    check_cut_off(job, report, work)
    assert f"there is no block 'local-file-system/{name}'" in report.reason
