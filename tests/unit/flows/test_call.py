"""`orchestrate()` as it is called: what it returns and raises, and what becomes of the job when the caller is ended."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator import orchestrate, orchestrate_sync
from orchestrator.core.model import RunId, StopCause, StopMode, Verdict
from orchestrator.engine.context import ParentRun
from orchestrator.engine.gateway import Gateway
from orchestrator.engine.memory import INSTANT, MemoryGateway, SimulatedEngine
from orchestrator.errors import (
    ConfigurationError,
    JobCancelledError,
    JobConflictError,
    JobFailedError,
    JobNotFoundError,
    KillSwitchTrippedError,
    StorageError,
)
from orchestrator.flows import calling
from orchestrator.flows.call import plan_sync, resume, resume_sync, stage_sync
from orchestrator.flows.calling import Call, _nth_call, make_call
from orchestrator.store import JobFolder
from orchestrator.testing import SimulatedBatches

NAME = "simulated/batches"
_numbers = itertools.count()


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Calls go to a simulated Prefect in real time; change `process` and `seconds` for what its children do."""
    what: dict[str, Any] = {"process": lambda item: item, "seconds": 0.0}

    async def open_gateway(self: Call) -> Gateway:
        work = SimulatedBatches(what["process"], seconds_per_item=what["seconds"], fence_seconds=0.05)
        return MemoryGateway(engine=SimulatedEngine(work, latencies=INSTANT))

    monkeypatch.setattr(Call, "open_gateway", open_gateway)
    for name, value in {"FENCE": "0.05", "ITEM_GRACE": "0.1", "CANCEL_DEADLINE": "2", "POLL": "0.2"}.items():
        monkeypatch.setenv(f"ORCHESTRATOR_{name}_SECONDS", value)
    return what


def wanted(**more: Any) -> dict[str, Any]:
    return {"deployment": NAME, "items": range(20), "batch_size": 5, "storage": f"memory://call-{next(_numbers)}",
            **more}  # fmt: skip


def sync(**more: Any) -> Any:
    return orchestrate_sync(**wanted(**more))


def from_async(**more: Any) -> Any:
    return asyncio.run(orchestrate(**wanted(**more)))


both = pytest.mark.parametrize("call", [sync, from_async], ids=["sync", "async"])


# ---------------------------------------------------------------- what comes back


@both
def test_a_job_that_went_well_is_its_report(children, call):
    report = call()
    assert report.items.succeeded == 20
    assert report.ok


@both
def test_a_job_that_failed_raises_with_its_report(children, call):
    children["process"] = lambda item: 1 / item
    with pytest.raises(JobFailedError, match="1 of 20 items failed") as failed:
        call()
    assert failed.value.report.items.failed == 1
    assert failed.value.exit_code == 1


@both
def test_a_job_that_tripped_raises_with_its_report(children, call):
    children["process"] = lambda item: 1 / 0
    with pytest.raises(KillSwitchTrippedError) as tripped:
        call(kill_switch="failed >= 1")
    assert tripped.value.report.verdict is Verdict.TRIPPED


@both
def test_whoever_wants_the_report_gets_it_however_the_job_ended(children, call):
    children["process"] = lambda item: 1 / 0
    assert call(on_failure="return").failed_by_rule


@both
def test_a_wrong_request_is_refused_before_anything_is_looked_up(monkeypatch, call):
    async def nobody(self: Call) -> Gateway:
        raise AssertionError("Prefect was asked")

    monkeypatch.setattr(Call, "open_gateway", nobody)
    with pytest.raises(ConfigurationError, match="batch_size"):
        call(batch_size=0)
    with pytest.raises(ConfigurationError, match="colour"):
        orchestrate_sync(NAME, [1], colour="red")


@both
def test_the_same_id_again_gives_the_old_report(children, call):
    where = f"memory://call-{next(_numbers)}"
    first = call(job_id="j", storage=where)
    assert call(job_id="j", storage=where) == first
    assert resume_sync("j", storage=where) == first


def test_progress_is_told_from_another_thread(children):
    seen: list[tuple[int, str]] = []
    report = sync(on_progress=lambda view: seen.append((view.settled, threading.current_thread().name)))
    assert seen[-1][0] == report.items.total
    assert all("job" in name for _, name in seen)


def test_a_stopped_job_raises_that_it_was_cancelled(children):
    from orchestrator.core.model import StopRecord

    children["seconds"] = 0.05
    where = f"memory://call-{next(_numbers)}"
    staged = stage_sync(**wanted(job_id="j", storage=where))
    staged.job.folder.request_stop(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "no more", "cli"))
    with pytest.raises(JobCancelledError) as cancelled:
        resume_sync("j", storage=where)
    assert cancelled.value.exit_code == 4
    with pytest.raises(JobConflictError):
        resume_sync("j", storage=where)


def test_a_staged_job_has_run_nothing_and_is_run_by_whoever_resumes_it(children):
    where = f"memory://call-{next(_numbers)}"
    staged = stage_sync(**wanted(job_id="j", storage=where))
    assert staged.job.folder.attempts() == {}
    assert asyncio.run(resume("j", storage=where)).items.succeeded == 20


def test_a_job_that_is_not_there_cannot_be_resumed(children):
    with pytest.raises(JobNotFoundError):
        resume_sync("nobody", storage=f"memory://call-{next(_numbers)}")
    with pytest.raises(ConfigurationError, match="job_id"):
        resume_sync("../x", storage=f"memory://call-{next(_numbers)}")


def test_a_plan_creates_nothing(children):
    where = f"memory://call-{next(_numbers)}"
    plan = plan_sync(**wanted(storage=where, job_id="j"))
    assert (plan.items, plan.batches, plan.largest) == (20, 4, 5)
    assert plan.to_json()["api_requests"] == {"parent": 24, "children": 124}
    assert JobFolder(f"{where}/j").store.list() == []
    empty = plan_sync(**wanted(items=[], storage=where))
    assert (empty.items, empty.batches, empty.waves) == (0, 0, 0)


# ---------------------------------------------------------------- the caller is ended


def started(where: str) -> Callable[[], bool]:
    return lambda: bool(JobFolder(f"{where}/j").attempts())


def cancel_when(condition: Callable[[], bool], **more: Any) -> None:
    async def whole() -> None:
        task = asyncio.ensure_future(orchestrate(**more))
        while not condition():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(whole())


def test_a_cancelled_caller_stops_the_job_and_leaves_a_report(children):
    children["seconds"] = 0.05
    where = f"memory://call-{next(_numbers)}"
    cancel_when(started(where), **wanted(items=range(500), storage=where, job_id="j"))
    folder = JobFolder(f"{where}/j")
    stop, report = folder.read_stop(), folder.read_report()
    assert stop is not None
    assert (stop.mode, stop.cause) == (StopMode.CANCEL, StopCause.PARENT_CANCELLED)
    assert report is not None
    assert report["verdict"] == "cancelled"
    assert report["items"]["not_started"] > 0


def test_a_caller_that_is_cancelled_again_and_again_settles_all_the_same(children):
    children["seconds"] = 0.05
    where = f"memory://call-{next(_numbers)}"
    condition = started(where)

    async def whole() -> None:
        task = asyncio.ensure_future(orchestrate(**wanted(items=range(500), storage=where, job_id="j")))
        while not condition():
            await asyncio.sleep(0.01)
        while not task.done():
            task.cancel()
            await asyncio.sleep(0.02)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(whole())
    report = JobFolder(f"{where}/j").read_report()
    assert report is not None
    assert report["verdict"] == "cancelled"


def test_a_cancelled_caller_may_abandon_its_children(children):
    children["seconds"] = 0.05
    where = f"memory://call-{next(_numbers)}"
    more = wanted(items=range(500), storage=where, job_id="j", on_parent_cancelled="abandon")
    cancel_when(started(where), **more)
    folder = JobFolder(f"{where}/j")
    assert folder.read_stop() is None
    lease = folder.read_lease()
    assert lease is not None
    assert lease.on_loss == "finish"


@pytest.mark.parametrize("abandon", [False, True])
def test_an_interrupted_sync_caller_stops_or_abandons_the_job(children, monkeypatch, abandon):
    children["seconds"] = 0.05
    where = f"memory://call-{next(_numbers)}"
    mode = "abandon" if abandon else "cancel"
    start = calling.JobThread.start

    def interrupted(self: Any) -> Any:
        future = start(self)
        result = future.result

        def once(timeout: float | None = None) -> Any:
            future.result = result  # type: ignore[method-assign]
            while not started(where)():
                time.sleep(0.01)
            raise KeyboardInterrupt

        future.result = once  # type: ignore[method-assign]
        return future

    monkeypatch.setattr(calling.JobThread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sync(items=range(500), storage=where, job_id="j", on_parent_cancelled=mode)
    folder = JobFolder(f"{where}/j")
    assert (folder.read_stop() is None) is abandon
    assert (folder.read_report() is None) is abandon


# ---------------------------------------------------------------- names of jobs


def run(count: int = 1, id_: str = "run-1") -> ParentRun:
    return ParentRun(RunId(id_), "brave-owl", "mine", count, None, None, None)


def test_the_nth_call_in_a_run_is_one_job_counted_anew_each_time_the_run_runs():
    name = f"run-{next(_numbers)}"
    assert [_nth_call(run(1, name)) for _ in range(3)] == [1, 2, 3]
    assert [_nth_call(run(2, name)) for _ in range(2)] == [1, 2]
    assert _nth_call(run(1, f"{name}-other")) == 1


def test_a_call_in_a_run_is_named_after_the_run_unless_it_has_a_name(monkeypatch):
    monkeypatch.setattr(calling, "outermost_run", lambda: run(1, "run-named"))
    made = make_call({"deployment": NAME})
    assert made.spec is not None
    assert made.spec.job_id == "run-named-1"
    named = make_call({"deployment": NAME, "job_id": "mine"})
    assert named.spec is not None
    assert named.spec.job_id == "mine"
    assert made.parent is not None
    assert made.parent.name == "brave-owl"


def test_what_is_none_has_its_default_but_a_switch_that_is_none_is_none():
    made = make_call({"deployment": NAME, "batch_retries": None, "storage": None, "kill_switch": None, "fail_if": None})
    assert made.spec is not None
    assert (made.spec.kill_switch, made.spec.fail_if, made.spec.retries) == (None, None, 2)


def test_staging_is_told_of_now_and_then(caplog):
    made = make_call({"deployment": NAME})
    made.log = logging.getLogger("tests.staging")
    with caplog.at_level(logging.INFO, "tests.staging"):
        made._on_staging(99_999, 5)
        made._on_staging(200_000, 7_000_000)
    assert [record.getMessage() for record in caplog.records] == ["Staged 200000 items (7 MB) so far."]


@pytest.mark.parametrize("call", [sync, from_async], ids=["sync", "async"])
def test_a_word_for_failures_that_nobody_knows_is_refused_before_the_job(children, call):
    with pytest.raises(ConfigurationError, match="on_failure: must be 'raise' or 'return'"):
        call(on_failure="boom")


@pytest.mark.parametrize("begin", [plan_sync, stage_sync])
def test_storage_in_this_processs_memory_is_refused_for_real_child_runs(begin):
    with pytest.raises(StorageError, match="memory of this process"):
        begin("a/b", range(3), storage="memory://x")
