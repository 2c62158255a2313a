"""From a request to a job that is ready to run: what is refused leaves nothing, what exists is taken over."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.core.model import StopMode
from orchestrator.engine.memory import MemoryGateway
from orchestrator.errors import (
    ConfigurationError,
    DeploymentNotFoundError,
    EngineUnavailableError,
    JobConflictError,
    JobNotFoundError,
    SourceError,
    StorageError,
    StoreUnavailableError,
)
from orchestrator.flows.prepare import Prepared, finished, new_job_id, prepare, storage_root, take_over
from orchestrator.flows.request import make_spec
from orchestrator.settings import Settings
from orchestrator.store import JobFolder, as_source, check_job_id

_numbers = itertools.count()


@pytest.fixture
def root() -> str:
    return f"memory://prepare-{next(_numbers)}"


def ready(root: str, items: Any = range(20), gateway: MemoryGateway | None = None, **request: Any) -> Prepared:
    spec = make_spec(**{"deployment": "simulated/batches", "batch_size": 5, "job_id": "j", "storage": root, **request})
    source = as_source(items, storage=root)
    return asyncio.run(prepare(spec, source, gateway or MemoryGateway(), settings=Settings(), say=lambda line: None))


def taken_over(root: str, job_id: str = "j", gateway: MemoryGateway | None = None) -> Prepared:
    return asyncio.run(take_over(job_id, root, gateway or MemoryGateway(), settings=Settings()))


def folder(root: str) -> JobFolder:
    return JobFolder(f"{root}/j")


class Away(MemoryGateway):
    async def find_deployment(self, name: str) -> Any:
        raise EngineUnavailableError("Prefect cannot be reached")


# ---------------------------------------------------------------- a new job


def test_a_new_job_is_staged_and_has_its_first_parent(root):
    made = ready(root, kill_switch="failed >= 3", on_trip="drain", tags=["nightly"])
    job = made.job
    assert (made.resumed, made.old_report, job.epoch) == (False, None, 1)
    assert list(job.setup.counts) == [5, 5, 5, 5]
    assert str(job.setup.kill_switch) == "failed >= 3"
    assert job.setup.on_trip is StopMode.DRAIN
    assert job.folder.read_job().spec["tags"] == ["nightly"]


def test_a_job_whose_creation_was_carried_out_and_not_answered_keeps_its_items(root, monkeypatch):
    create = JobFolder.create_job

    def unanswered(self: JobFolder, record: Any) -> bool:
        create(self, record)
        raise StoreUnavailableError("the storage did not answer")

    monkeypatch.setattr(JobFolder, "create_job", unanswered)
    with pytest.raises(StoreUnavailableError):
        ready(root)
    assert [item.value for item in folder(root).read_items(folder(root).batch(0))] == [0, 1, 2, 3, 4]
    assert taken_over(root).resumed


def test_a_job_whose_creation_failed_leaves_no_items(root, monkeypatch):
    def failing(self: JobFolder, record: Any) -> bool:
        raise StoreUnavailableError("the storage is away")

    monkeypatch.setattr(JobFolder, "create_job", failing)
    with pytest.raises(StoreUnavailableError):
        ready(root)
    assert folder(root).store.list() == []


def test_the_grace_of_items_is_given_before_children_are_cancelled(root):
    settings = Settings(fence_seconds=3, item_grace_seconds=7)
    spec = make_spec(deployment="simulated/batches", storage=root, job_id="j")
    made = asyncio.run(prepare(spec, as_source([1], storage=root), MemoryGateway(), settings=settings))
    assert made.job.setup.item_grace == 10
    assert made.job.folder.read_job().spec["child"]["item_grace_seconds"] == 7


def test_a_budget_of_requests_is_the_jobs_own_else_the_settings(root, monkeypatch):
    assert ready(root).max_requests_per_minute is None
    monkeypatch.setenv("ORCHESTRATOR_MAX_REQUESTS_PER_MINUTE", "50")
    assert ready(f"{root}-2").max_requests_per_minute == 50
    assert ready(f"{root}-3", max_requests_per_minute=80).max_requests_per_minute == 80
    assert taken_over(f"{root}-3").max_requests_per_minute == 80


@pytest.mark.parametrize(
    ("window", "budget", "seconds"), [(8, None, 2.0), (100, None, 10.0), (8, 60, 8.0), (8, 600, 2.0)]
)
def test_children_tell_their_news_no_more_often_than_the_parent_may_ask(root, window, budget, seconds):
    made = ready(root, max_in_flight=window, max_requests_per_minute=budget)
    assert made.job.folder.read_job().spec["child"]["news_seconds"] == seconds


def test_the_same_job_may_be_resumed_with_another_budget_and_keeps_that_one(root):
    ready(root, max_requests_per_minute=60)
    again = ready(root, max_requests_per_minute=30)
    assert (again.resumed, again.max_requests_per_minute) == (True, 30)
    assert ready(root).max_requests_per_minute is None


def test_names_of_jobs_outside_of_runs_are_never_the_same():
    names = {new_job_id() for _ in range(200)}
    assert len(names) == 200
    assert all(check_job_id(name) == name for name in names)


def test_storage_is_the_jobs_own_else_the_settings_else_in_prefects_home(monkeypatch, tmp_path):
    assert storage_root("s3://a/b", Settings(storage="s3://c/d")) == "s3://a/b"
    assert storage_root(None, Settings(storage="s3://c/d")) == "s3://c/d"
    assert storage_root(None, Settings()).endswith("orchestrator/jobs")
    with pytest.raises(ConfigurationError):
        storage_root("s3://user:secret@a/b", Settings())


# ---------------------------------------------------------------- nothing is left of what is refused


def broken() -> Iterator[int]:
    yield from range(1000)
    raise RuntimeError("the source broke")


@pytest.mark.parametrize(
    ("items", "request_", "error"),
    [
        (range(3), {"deployment": "simulated/batchs"}, DeploymentNotFoundError),
        ([{"id": 1}, {"id": 1}], {"key": "id", "unique_keys": True}, SourceError),
        ([object()], {}, SourceError),
        ([{"g": "a"}], {"deployment": {"b": "simulated/batches"}, "group_by": "g"}, ConfigurationError),
        (["x" * 1000], {"max_bytes": 10}, SourceError),
        ("/nowhere/at/all.csv", {}, SourceError),
        (broken, {}, ConfigurationError),
    ],
    ids=["deployment", "keys twice", "no JSON", "no deployment for a group", "too large", "no file", "source breaks"],
)
def test_a_refused_request_leaves_nothing(root, items, request_, error):
    with pytest.raises(error):
        ready(root, items, **request_)
    assert folder(root).store.list() == []


def test_while_prefect_is_away_nothing_is_created(root):
    with pytest.raises(EngineUnavailableError):
        ready(root, gateway=Away())
    assert folder(root).store.list() == []


def test_a_job_that_somebody_creates_at_the_same_moment_is_refused_and_our_items_removed(root, monkeypatch):
    create = JobFolder.create_job

    def raced(self: JobFolder, record: Any) -> bool:
        monkeypatch.setattr(JobFolder, "create_job", create)
        ready(root)
        return create(self, record)

    monkeypatch.setattr(JobFolder, "create_job", raced)
    with pytest.raises(JobConflictError, match="same moment"):
        ready(root)
    nonce = folder(root).read_job().nonce
    assert {entry.name.split("/")[1] for entry in folder(root).store.list("items")} == {nonce}


# ---------------------------------------------------------------- a job that exists


def test_the_same_request_takes_the_job_over(root):
    first = ready(root)
    second = ready(root)
    assert (second.resumed, second.job.epoch) == (True, 2)
    assert second.job.nonce == first.job.nonce
    assert first.job.folder.is_superseded(first.job.epoch)


def test_of_a_source_that_is_another_it_is_said_in_what(root, tmp_path):
    file = tmp_path / "items.txt"
    file.write_text("one\ntwo\n")
    ready(root, str(file))
    file.write_text("one\n")
    with pytest.raises(JobConflictError, match=r"\(items: the content of .*items\.txt is another than it was then\)"):
        ready(root, str(file))
    with pytest.raises(JobConflictError, match=r'items: \{"kind": "file".* there, \{"kind": "range".* here'):
        ready(root)


def test_a_source_without_items_is_said(root):
    said: list[str] = []
    spec = make_spec(deployment="simulated/batches", job_id="j", storage=root)
    asyncio.run(prepare(spec, as_source([], storage=root), MemoryGateway(), settings=Settings(), say=said.append))
    assert "the source holds no items: there is nothing to do" in said


def test_another_request_is_refused_with_the_differences(root):
    ready(root)
    with pytest.raises(JobConflictError, match="batch_size: 5 there, 6 here") as refused:
        ready(root, batch_size=6)
    assert refused.value.differences == {"batch_size": (5, 6)}
    with pytest.raises(JobConflictError, match="items"):
        ready(root, range(21))
    assert folder(root).newest_epoch() == 1


def test_a_job_is_taken_over_as_it_was_staged(root):
    first = ready(root, kill_switch="failed >= 3", parameters={}, batch_retries=1)
    second = taken_over(root)
    assert second.resumed
    assert second.job.setup == first.job.setup
    assert second.job.epoch == 2


def test_whoever_cannot_take_over_does_not_push_the_parent_aside(root):
    """The deployment is gone, or Prefect is away: the parent that lives goes on."""
    ready(root)
    gone = MemoryGateway()
    gone.engine.deployments.clear()
    with pytest.raises(DeploymentNotFoundError):
        taken_over(root, gateway=gone)
    with pytest.raises(EngineUnavailableError):
        taken_over(root, gateway=Away())
    with pytest.raises(EngineUnavailableError):
        ready(root, gateway=Away())
    assert folder(root).newest_epoch() == 1


def test_a_job_that_is_not_there_cannot_be_taken_over(root):
    with pytest.raises(JobNotFoundError):
        taken_over(root)


def test_storage_that_is_away_is_not_taken_for_a_job_that_is_not_there(root, monkeypatch):
    ready(root)

    def away(self: JobFolder) -> Any:
        raise StoreUnavailableError("the storage is away")

    monkeypatch.setattr(JobFolder, "read_job", away)
    with pytest.raises(StoreUnavailableError):
        ready(root)


@pytest.mark.parametrize("verdict", ["completed", "enough"])
def test_a_job_that_is_over_gives_its_report_without_asking_prefect(root, verdict):
    ready(root)
    folder(root).write_report({**REPORT, "verdict": verdict})
    for again in (ready(root, gateway=Away()), taken_over(root, gateway=Away())):
        assert again.old_report is not None
        assert again.old_report.verdict == verdict


@pytest.mark.parametrize("verdict", ["tripped", "cancelled", "failed"])
def test_a_job_that_ended_badly_points_to_its_items(root, verdict):
    ready(root)
    folder(root).write_report({**REPORT, "verdict": verdict})
    with pytest.raises(JobConflictError, match=r"job:j\?outcome=failed,unknown,not_started"):
        ready(root)
    assert folder(root).newest_epoch() == 1


def test_a_job_whose_report_is_damaged_is_not_over_so_that_it_is_written_anew(root):
    ready(root)
    folder(root).write_report({"verdict": "splendid"})
    assert finished(folder(root), "j") is None


def test_a_report_of_a_newer_version_is_refused(root):
    ready(root)
    folder(root).store.put("report.json", b'{"format": 99}')
    with pytest.raises(StorageError, match="format 99"):
        finished(folder(root), "j")


def test_storage_that_cannot_be_written_is_refused_before_anything_is_staged(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises((StorageError, StoreUnavailableError)):
        ready(str(tmp_path / "file" / "jobs"))


REPORT: dict[str, Any] = {
    "job_id": "j", "verdict": "completed", "failed_by_rule": False, "reason": "", "deployment": "d/e", "seconds": 1.0,
    "items": {"total": 0, "succeeded": 0, "failed": 0, "unknown": 0, "not_started": 0},
    "batches": {"total": 0, "completed": 0, "failed": 0, "crashed": 0, "cancelled": 0, "not_submitted": 0,
                "unconfirmed": 0},
    "kill_switch": {"expression": None},
}  # fmt: skip
