"""A child run that does not reach its job folder: it says so at once, from where it stands, and does nothing else."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.registry import _registry, known_implementations

from orchestrator.batchrun import reaching
from orchestrator.batchrun.ending import Ending
from orchestrator.batchrun.reaching import UnreachableError, reach
from orchestrator.batchrun.run import run_batch
from orchestrator.core.model import UNREACHABLE
from orchestrator.store import objects
from tests.unit.batchrun.jobs import Door, StagedJob, chosen


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = reach.__kwdefaults__
    monkeypatch.setitem(defaults, "seconds", 1.0)
    monkeypatch.setitem(defaults, "missing_seconds", 0.2)


@pytest.fixture
def s3_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    for name, value in {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing-much",
                        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    objects.forget_file_systems()
    yield monkeypatch
    objects.forget_file_systems()


def moved(job: StagedJob, to: Path) -> None:
    os.rename(job.folder.url, to)


def test_a_folder_that_is_not_mounted_is_told_with_what_is_there_and_the_remedy(
    tmp_path: Path, impatient: None
) -> None:
    job, ran = StagedJob(tmp_path / "jobs" / "job-1", [1]), []
    reference = job.reference()
    moved(job, tmp_path / "elsewhere")
    (tmp_path / "jobs").rmdir()
    ended = run_batch(reference, chosen(ran.append), Door())
    assert (ended.type, ended.name, ran) == ("FAILED", UNREACHABLE, [])
    assert f"Cannot reach the job folder {tmp_path}/jobs/job-1 from " in ended.message
    assert f"host {socket.gethostname()}" in ended.message
    assert f"there is no such folder, only {tmp_path}." in ended.message
    assert "volume" in ended.message
    assert not (tmp_path / "jobs").exists(), "nothing is made where it looked"


def test_a_folder_without_its_job_is_another_folder(tmp_path: Path, impatient: None) -> None:
    reference = StagedJob(tmp_path / "job-1", [1]).reference()
    (tmp_path / "job-1" / "job.json").unlink()
    ended = run_batch(reference, chosen(lambda item: None), Door())
    assert (ended.name, "the folder is there, and no job in it" in ended.message) == (UNREACHABLE, True)


def test_a_folder_that_shows_a_little_later_is_reached(tmp_path: Path) -> None:
    job = StagedJob(tmp_path / "job-1", [1, 2])
    reference = job.reference()
    moved(job, tmp_path / "not-yet")
    threading.Timer(0.7, os.rename, (tmp_path / "not-yet", tmp_path / "job-1")).start()
    assert run_batch(reference, chosen(lambda item: item), Door()).type == "COMPLETED"


def test_a_folder_that_cannot_be_written_is_out_of_reach_as_well(tmp_path: Path) -> None:
    job = StagedJob(tmp_path / "job-1", [1])
    (tmp_path / "job-1" / "b").write_text("in the way")  # as a volume that was mounted for reading alone
    ended = run_batch(job.reference(), chosen(lambda item: None), Door())
    assert (ended.type, ended.name) == ("FAILED", UNREACHABLE)
    assert f"{tmp_path}/job-1/b" in ended.message


def test_a_folder_of_a_newer_version_is_not_tried_again(tmp_path: Path) -> None:
    reference = StagedJob(tmp_path / "job-1", [1]).reference()
    (tmp_path / "job-1" / "job.json").write_text('{"format": 99}')
    began = time.monotonic()
    ended = run_batch(reference, chosen(lambda item: None), Door())
    assert ended.name == UNREACHABLE
    assert "format 99" in ended.message
    assert time.monotonic() - began < reaching.MISSING_SECONDS


def test_storage_that_never_answers_is_given_up_in_time(s3_environment: pytest.MonkeyPatch) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        s3_environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(UnreachableError, match="it gave no answer within 2 s"):
            reach("s3://jobs/job-1", seconds=2)
        assert time.monotonic() - began < 10


def test_storage_at_an_address_where_nobody_is_names_the_address(s3_environment: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    s3_environment.setenv("AWS_ENDPOINT_URL", address)
    with pytest.raises(UnreachableError) as caught:
        reach("s3://jobs/job-1", seconds=10)
    assert address in str(caught.value)


def test_a_package_that_is_missing_here_is_named_with_its_extra(tmp_path: Path, impatient: None) -> None:
    with pytest.raises(UnreachableError, match=r"install the extra 'gcs' .*pip install '\.\[gcs\]'") as caught:
        reach("gs://bucket/job-1")
    ended = reaching.unreachable("gs://bucket/job-1", caught.value, Door())
    assert "missing where child runs work" in ended.message


SLOW = """
import time
from fsspec.implementations.memory import MemoryFileSystem

time.sleep(1.5)

class Slow(MemoryFileSystem):
    protocol = "slow"
    broken = 1

    def __init__(self, *arguments, **options):
        if Slow.broken:
            Slow.broken -= 1
            raise ConnectionResetError("the first try goes wrong")
        super().__init__(*arguments, **options)

    def pipe_file(self, *arguments, **options):
        return super().pipe_file(*arguments, **options)
"""


def test_neither_a_slow_import_nor_a_client_that_failed_once_when_it_was_made_is_storage_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_client.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    fsspec.register_implementation("slow", "slow_client.Slow")
    try:
        with pytest.raises(UnreachableError, match="there is no such job in it"):
            reach("slow://bucket/job-1", seconds=1.4, missing_seconds=0.1)
    finally:
        _registry.pop("slow", None)
        known_implementations.pop("slow", None)
        sys.modules.pop("slow_client", None)
        objects.forget_file_systems()


def test_what_it_says_is_masked(tmp_path: Path) -> None:
    class Masking(Door):
        def mask(self, text: str) -> str:
            return text.replace("hunter2", "********")

    ended = reaching.unreachable("s3://bucket/job", UnreachableError("key hunter2 is wrong"), Masking())
    assert isinstance(ended, Ending)
    assert "key ******** is wrong" in ended.message
