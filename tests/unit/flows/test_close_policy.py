"""What becomes of a job's children when what started it ends before it: by policy, for each way inside a process.

The ways in which a whole process ends (killed, gone, cancelled in the UI) are tested on a real server:
`tests/integration/test_job_close_policy.py`. The table is in docs/operations.md.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import orchestrate, orchestrate_sync
from orchestrator.core.machine import events as ev
from orchestrator.core.model import StopCause, StopMode, StopRecord
from orchestrator.flows import parent as parents
from orchestrator.flows.call import stage_sync
from orchestrator.flows.parent import settle_after_cancellation, settle_after_crash
from orchestrator.reactor import loop as reactor_loop
from orchestrator.store import JobFolder
from tests.support import eventually
from tests.unit.flows.test_call import children, started, wanted

__all__ = ["children"]  # a fixture

POLICIES = ["cancel", "drain", "abandon"]
MODES = {"cancel": StopMode.CANCEL, "drain": StopMode.DRAIN, "abandon": None}
OWNER = "3f0c2b1e-0000-4000-8000-00000000000a"


@pytest.fixture
def where(request: pytest.FixtureRequest) -> str:
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    return f"memory://close-{name}"


def job(where: str, policy: str, **more: Any) -> dict[str, Any]:
    """A job of 100 batches of five items of 0.05 s, two at once."""
    return wanted(items=range(500), storage=where, job_id="j", on_parent_cancelled=policy, max_in_flight=2,
                  kill_switch=None, **more)  # fmt: skip


def check(where: str, policy: str, cause: StopCause) -> None:
    """The stop that was left, the report, and that children which may finish did so."""
    folder = JobFolder(f"{where}/j")
    stop, report, lease = folder.read_stop(), folder.read_report(), folder.read_lease()
    assert lease is not None
    assert lease.on_loss == ("stop" if policy == "cancel" else "finish")
    if policy == "abandon":
        assert (stop, report) == (None, None), "it can be resumed"
        return
    assert stop is not None
    assert (stop.mode, stop.cause) == (MODES[policy], cause)
    assert report is not None
    assert report["verdict"] == ("failed" if cause is StopCause.FAILED else "cancelled")
    assert report["items"]["not_started"] > 0
    if policy == "drain" and cause is not StopCause.FAILED:
        assert report["batches"]["completed"] + report["batches"]["not_submitted"] == 100
        assert report["items"]["succeeded"] % 5 == 0, "every batch that had begun was finished"


# ---------------------------------------------------------------- cancelled, and errors around it


@pytest.mark.parametrize("policy", POLICIES)
def test_a_cancelled_caller_ends_its_children_as_asked(children, where, policy):
    children["seconds"] = 0.05

    async def whole() -> None:
        task = asyncio.ensure_future(orchestrate(**job(where, policy)))
        while not started(where)():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(whole())
    check(where, policy, StopCause.PARENT_CANCELLED)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("how", ["task group", "gather", "timeout"])
def test_an_error_beside_an_async_call_ends_its_children_as_asked(children, where, policy, how):
    children["seconds"] = 0.05

    async def fails() -> None:
        while not started(where)():
            await asyncio.sleep(0.01)
        raise RuntimeError("what runs beside the job")

    async def mine() -> None:
        if how == "task group":
            async with asyncio.TaskGroup() as group:
                group.create_task(orchestrate(**job(where, policy)))
                group.create_task(fails())
        elif how == "gather":
            await asyncio.gather(orchestrate(**job(where, policy)), fails())
        else:
            async with asyncio.timeout(1.5):
                await orchestrate(**job(where, policy))

    with pytest.raises((ExceptionGroup, RuntimeError, TimeoutError)):
        asyncio.run(mine())
    check(where, policy, StopCause.PARENT_CANCELLED)


@pytest.mark.parametrize("policy", POLICIES)
def test_an_exception_thrown_into_the_thread_of_a_sync_call_ends_its_children_as_asked(children, where, policy):
    """As Prefect's timeout of a sync flow in a thread does; it cannot interrupt a wait for a lock."""
    children["seconds"] = 0.05
    raised: list[BaseException] = []

    def mine() -> None:
        try:
            orchestrate_sync(**job(where, policy))
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=mine)
    thread.start()
    eventually(started(where), 30, "children at work")
    assert thread.ident is not None
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt))
    thread.join(60)
    assert not thread.is_alive()
    assert [type(error) for error in raised] == [KeyboardInterrupt]
    check(where, policy, StopCause.PARENT_CANCELLED)


# ---------------------------------------------------------------- a fault of ours


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("call", [orchestrate_sync, lambda **p: asyncio.run(orchestrate(**p))], ids=["sync", "async"])
def test_a_fault_of_ours_ends_the_children_as_asked_and_is_raised_when_the_job_is_settled(
    children, where, policy, call, monkeypatch
):
    children["seconds"] = 0.05
    monkeypatch.setattr(reactor_loop, "step", breaks_once(reactor_loop.step))
    with pytest.raises(ZeroDivisionError):
        call(**job(where, policy))
    check(where, policy, StopCause.FAILED)


def test_a_fault_that_comes_again_while_the_job_is_settled_is_said_and_the_first_one_raised(
    children, where, monkeypatch, caplog
):
    def always(*_: Any) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(reactor_loop, "step", always)
    with pytest.raises(ZeroDivisionError):
        orchestrate_sync(**job(where, "cancel"))
    assert JobFolder(f"{where}/j").read_stop() is not None
    assert JobFolder(f"{where}/j").read_report() is None
    assert any("could not be settled" in record.getMessage() for record in caplog.records)


def breaks_once(step: Callable[..., Any]) -> Callable[..., Any]:
    left = [1]

    def broken(state: Any, event: Any, at: float) -> Any:
        if isinstance(event, ev.Closed) and left:
            left.pop()
            raise ZeroDivisionError("a bug")
        return step(state, event, at)

    return broken


# ---------------------------------------------------------------- hooks


def staged(where: str, policy: str, owner: str | None = OWNER) -> JobFolder:
    """A job whose parent, that run, is gone."""
    folder = stage_sync(**job(where, policy)).job.folder
    folder.claim_epoch({"run": "brave-owl", "run_id": owner})
    folder.write_lease(1, folder.newest_epoch(), "stop")
    return folder


def flow_run(where: str, **more: Any) -> Any:
    return SimpleNamespace(
        id=OWNER, name="brave-owl", parameters={"advanced": {"storage": where, "job_id": "j", **more}}
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_the_hook_of_a_cancelled_parent_settles_what_it_left_as_asked(children, where, policy):
    staged(where, policy)
    settle_after_cancellation(None, flow_run(where), None)  # type: ignore[arg-type]
    folder = JobFolder(f"{where}/j")
    stop, report = folder.read_stop(), folder.read_report()
    assert (stop and stop.mode) == MODES[policy]
    assert (report and report["verdict"]) == (None if policy == "abandon" else "cancelled")


def test_the_hook_of_a_crashed_parent_leaves_a_job_alone_that_can_be_resumed(children, where):
    folder = staged(where, "cancel")
    settle_after_crash(None, flow_run(where), None)  # type: ignore[arg-type]
    assert (folder.read_stop(), folder.read_report()) == (None, None)


def test_the_hook_of_a_parent_that_crashed_while_it_stopped_its_job_finishes_that(children, where):
    folder = staged(where, "cancel")
    folder.request_stop(StopRecord(StopMode.CANCEL, StopCause.TRIPPED, "kill switch: failed >= 1", "kill switch"))
    settle_after_crash(None, flow_run(where), None)  # type: ignore[arg-type]
    report = folder.read_report()
    assert report is not None
    assert report["verdict"] == "tripped"


@pytest.mark.parametrize("hook", [settle_after_cancellation, settle_after_crash])
def test_no_hook_touches_a_job_that_is_another_runs(children, where, hook):
    folder = staged(where, "cancel", owner="11111111-0000-4000-8000-00000000000b")
    hook(None, flow_run(where), None)
    assert (folder.read_stop(), folder.read_report()) == (None, None)


@pytest.mark.parametrize("hook", [settle_after_cancellation, settle_after_crash])
def test_a_hook_of_a_run_that_ended_before_there_was_a_job_says_nothing(children, where, hook, caplog):
    hook(None, flow_run(where), None)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_the_hook_waits_for_children_that_finish_their_batch_no_longer_than_it_says(children, where, monkeypatch):
    monkeypatch.setattr(parents, "HOOK_SECONDS", 0.2)
    monkeypatch.setattr("orchestrator.flows.waiting.PARENT_CANCELLED_SECONDS", 0.2)

    async def long(call: Any, prepared: Any) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(parents, "run_async", long)
    folder = staged(where, "drain")
    settle_after_cancellation(None, flow_run(where), None)  # type: ignore[arg-type]
    stop = folder.read_stop()
    assert stop is not None
    assert stop.mode is StopMode.DRAIN
