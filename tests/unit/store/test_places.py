"""URLs, job ids, and storage that cannot serve."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import fsspec
import pytest

from orchestrator.errors import ConfigurationError, StorageError, StoreUnavailableError
from orchestrator.store import (
    JobFolder,
    absolute_url,
    check_job_id,
    is_local,
    job_folder_url,
    local_path,
    objects,
    open_store,
    places,
    probe,
    redact,
    register_scheme,
    resolve,
)
from orchestrator.store.local import LocalStore
from orchestrator.store.objects import MemoryStore


def test_a_local_place_becomes_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = os.getcwd()
    assert absolute_url("jobs/") == f"{here}/jobs"
    assert absolute_url("file:///srv/a%20b/") == "/srv/a b"
    assert absolute_url(Path("x")) == f"{here}/x"
    monkeypatch.setenv("HOME", "/home/someone")
    assert absolute_url("~/jobs") == "/home/someone/jobs"
    assert is_local("file:///x")
    assert is_local("jobs")
    assert not is_local("s3://b/x")


def test_other_urls_stay_as_they_are_without_a_trailing_slash() -> None:
    assert absolute_url("S3://bucket/jobs/") == "s3://bucket/jobs"
    assert absolute_url("memory://") == "memory://"
    assert absolute_url("abfs://container@account.dfs.core.windows.net/jobs") == (
        "abfs://container@account.dfs.core.windows.net/jobs"
    )


@pytest.mark.parametrize(
    "url",
    ["s3://key:secret@bucket/x", "sftp://me@host/x", "https://u:secret@h/x", "abfs://me:secret@account/x"],
)
def test_user_info_in_a_url_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError, match="credentials belong") as caught:
        absolute_url(url)
    assert "secret" not in str(caught.value)
    assert "me@" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "  ", "s3://", "simplecache::s3://b/x"])
def test_what_names_no_place_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="storage: "):
        absolute_url(url)


def test_a_url_is_shown_without_its_signature() -> None:
    assert redact("https://host/items.csv?signature=abc") == "https://host/items.csv"


def test_a_job_lies_in_a_folder_of_its_name_under_the_storage() -> None:
    assert job_folder_url("s3://b/jobs/", "nightly-1") == "s3://b/jobs/nightly-1"
    assert job_folder_url("memory://", "j") == "memory://j"


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, tuple[str, dict[str, object]]]:
    """Blocks by type and name, as somebody above this floor reads them."""
    monkeypatch.setattr(places, "_resolvers", {})
    known: dict[str, tuple[str, dict[str, object]]] = {
        "local-file-system/here": (f"{tmp_path}/jobs/", {}),
        "remote-file-system/there": ("s3://bucket/jobs/", {"key": "k", "secret": "not to be seen"}),
        "remote-file-system/memory": ("memory://jobs", {}),
        "remote-file-system/user-info": ("s3://key:secret@bucket/jobs", {}),
    }

    def read(block: str) -> tuple[str, dict[str, object]]:
        if block not in known:
            raise StorageError(f"there is no block {block!r}")
        return known[block]

    register_scheme("block", read)
    return known


def test_a_block_stays_its_name_wherever_it_lies(blocks: object) -> None:
    assert absolute_url("block:local-file-system/here/") == "block:local-file-system/here"
    assert job_folder_url("block:local-file-system/here", ".nightly-1") == "block:local-file-system/here/.nightly-1"
    assert absolute_url("block:remote-file-system/there/team/a//") == "block:remote-file-system/there/team/a"
    assert not is_local("block:local-file-system/here")  # what it says is read when it is opened


@pytest.mark.parametrize(
    "url",
    ["block:", "block:jobs", "block:/jobs", "block:remote-file-system/", "block:Remote/jobs", "block:a/b/../c",
     "block:a/b/..", "block:a/b/./c", "block:a/b//c", "block:a/b c", "block://a/b", "block:a/b?x=1", "block:a/b\n"],
)  # fmt: skip
def test_what_names_no_block_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"storage: .* names no block; write block:TYPE/NAME"):
        absolute_url(url)


def test_a_block_is_opened_where_it_says(blocks: object, tmp_path: Path) -> None:
    store = open_store("block:local-file-system/here/nightly")
    store.put("job.json", b"{}")
    assert (tmp_path / "jobs" / "nightly" / "job.json").read_bytes() == b"{}"
    assert store.url == "block:local-file-system/here/nightly"
    assert local_path("block:local-file-system/here/nightly") == f"{tmp_path}/jobs/nightly"
    found = resolve("block:remote-file-system/there/nightly")
    assert (found.url, found.options["key"]) == ("s3://bucket/jobs/nightly", "k")
    assert "not to be seen" not in repr(found)
    assert local_path("block:remote-file-system/there") is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("memory", "names memory://jobs, where no other process"),
        ("user-info", "credentials belong"),
        ("no", "no block"),
    ],
)
def test_a_block_that_names_no_place_for_jobs_is_refused(blocks: object, name: str, said: str) -> None:
    with pytest.raises(StorageError, match=said) as caught:
        open_store(f"block:remote-file-system/{name}")
    assert "key:secret" not in str(caught.value)


def test_without_anybody_who_knows_blocks_the_remedy_is_told(blocks: object) -> None:
    places._resolvers.clear()
    with pytest.raises(StorageError, match=r"orchestrator\.open_job"):
        open_store("block:local-file-system/here")


@pytest.mark.parametrize("job_id", ["", ".", "..", "a/b", "a b", "x" * 81, "é", "a\n"])
def test_a_name_that_could_leave_the_storage_names_no_job(job_id: str) -> None:
    with pytest.raises(ConfigurationError, match="job_id: "):
        check_job_id(job_id)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://example.org/jobs", "read-only"),
        ("nosuch://bucket/jobs", "unknown kind of URL"),
        ("gs://bucket/jobs", r"install the extra 'gcs' of .*\(pip install '\.\[gcs\]' in a checkout\)"),
        ("sftp://host/jobs", "sftp"),
        ("ftp://host/jobs", "cannot create a file exclusively"),
    ],
)
def test_a_kind_of_url_that_cannot_hold_jobs_is_refused_with_the_reason(url: str, said: str) -> None:
    with pytest.raises(StorageError, match=said):
        open_store(url)


def test_a_folder_that_cannot_be_written_is_found_by_the_probe(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot serve as storage") as caught:
        probe(open_store(str(tmp_path / "file" / "jobs")))
    assert caught.value.exit_code == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named_with_the_reason(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="Permission denied"):
            probe(open_store(str(tmp_path / "jobs")))
        with pytest.raises(StoreUnavailableError, match="Permission denied"):
            open_store(str(tmp_path / "jobs")).put("lease.json", b"1")
    finally:
        tmp_path.chmod(0o700)


class _LastWins(MemoryStore):
    """A store behind a gateway that ignores the condition of a conditional write."""

    def put_new(self, name: str, data: bytes) -> bool:
        self.put(name, data)
        return True


class _LooksFirst(MemoryStore):
    """A store without conditional writes, as generic clients imitate them: look, then write."""

    appends = False

    def put_new(self, name: str, data: bytes) -> bool:
        if self.get(name) is not None:
            return False
        import time

        time.sleep(0.01)
        self.put(name, data)
        return True


@pytest.mark.parametrize("kind", [_LastWins, _LooksFirst])
def test_a_store_that_lets_two_create_the_same_object_is_refused(kind: type[MemoryStore]) -> None:
    store = kind("memory://probe")
    with pytest.raises(StorageError, match="lets two writers create the same object"):
        probe(store)
    assert store.list() == []


def test_a_local_store_works_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    store = LocalStore(str(tmp_path))
    assert store.put_new("epoch/1.json", b"first")
    assert not store.put_new("epoch/1.json", b"second")
    assert store.get("epoch/1.json") == b"first"
    assert [e.name for e in store.list()] == ["epoch/1.json"]


@pytest.mark.parametrize("write", ["put", "put_new"])
def test_a_full_disk_is_told_with_the_name_of_what_was_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    def full(descriptor: int, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = open_store(str(tmp_path / "j"))
    monkeypatch.setattr("orchestrator.store.local.os.write", full)
    with pytest.raises(StoreUnavailableError, match=r"cannot write \S+/j/lease.json: No space left on device"):
        getattr(store, write)("lease.json", b"{}")
    monkeypatch.undo()
    assert list((tmp_path / "j").iterdir()) == [], "nothing half-written is left"


def test_opening_a_folder_creates_nothing(tmp_path: Path) -> None:
    folder = JobFolder(str(tmp_path / "jobs" / "j"))
    assert folder.read_stop() is None
    assert folder.attempts() == {}
    assert list(tmp_path.iterdir()) == []


def test_removing_a_job_takes_leftovers_of_interrupted_writes_and_leaves_the_rest(tmp_path: Path) -> None:
    folder = JobFolder(str(tmp_path / "j"))
    folder.write_lease(1, 1, "stop")
    (tmp_path / "j" / ".writing-left").write_text("half")
    (tmp_path / "j" / "notes.txt").write_text("mine")
    folder.delete()
    assert [p.name for p in (tmp_path / "j").iterdir()] == ["notes.txt"]


def test_a_memory_folder_is_visible_to_others_who_use_fsspec() -> None:
    open_store("memory://seen/here").put("job.json", b"{}")
    with fsspec.open("memory://seen/here/job.json", "rb") as file:
        assert file.read() == b"{}"


def test_an_s3_client_is_patient_for_a_while_unless_somebody_says_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    objects.forget_file_systems()
    try:
        assert objects.file_system("s3://bucket/x").config_kwargs["read_timeout"] == 20
        asked = objects.file_system("s3://bucket/x", {"config_kwargs": {"read_timeout": 7}}).config_kwargs
        assert (asked["read_timeout"], asked["connect_timeout"]) == (7, 10)
        monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 99}})
        objects.forget_file_systems()
        assert objects.file_system("s3://bucket/x").config_kwargs["read_timeout"] == 99
    finally:
        objects.forget_file_systems()
