"""The reactor in a thread of its own: how it is stopped, and how its errors reach the caller."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future

import pytest

from orchestrator.core.model import StopCause, StopMode, StopRecord, Verdict
from orchestrator.engine.gateway import Gateway
from orchestrator.engine.memory import INSTANT, MemoryGateway, SimulatedEngine
from orchestrator.errors import (
    EngineUnavailableError,
    InvalidTransitionError,
    JobConflictError,
    StoreUnavailableError,
)
from orchestrator.flows.prepare import Prepared
from orchestrator.reactor import JobThread, Reactor
from orchestrator.testing import SimulatedBatches
from tests.support import eventually
from tests.unit.reactor.jobs import prepared

LOG = logging.getLogger("tests.unit.reactor")
STOP = StopRecord(StopMode.CANCEL, StopCause.PARENT_CANCELLED, "the run was cancelled", "parent run")


def thread_of(
    job: Prepared,
    *,
    seconds: float = 0.0,
    open_gateway: Callable[[], Awaitable[Gateway]] | None = None,
    make: Callable[[Gateway], Awaitable[Reactor]] | None = None,
) -> JobThread:
    async def open_one() -> Gateway:
        return MemoryGateway(
            engine=SimulatedEngine(SimulatedBatches(lambda i: i, seconds_per_item=seconds), latencies=INSTANT)
        )

    async def make_one(gateway: Gateway) -> Reactor:
        return Reactor(job.job, gateway, log=LOG)

    return JobThread(job.job, job.heart, open_gateway or open_one, make or make_one, LOG)


def test_a_job_on_a_thread_ends_with_its_report():
    report = thread_of(prepared()).start().result(timeout=20)
    assert report.items.succeeded == 20


def test_a_stop_before_the_reactor_exists_is_obeyed_once_it_does():
    job = prepared()
    gate = threading.Event()

    async def open_late() -> Gateway:
        await asyncio.to_thread(gate.wait, 10)
        return MemoryGateway(engine=SimulatedEngine(SimulatedBatches(lambda i: i), latencies=INSTANT))

    thread = thread_of(job, open_gateway=open_late)
    future = thread.start()
    thread.request_stop(STOP)
    assert job.job.folder.read_stop() == STOP, "it is written at once, by the caller"
    gate.set()
    report = future.result(timeout=20)
    assert report.verdict is Verdict.CANCELLED
    assert report.batches.not_submitted == 4


def test_a_stop_while_the_job_runs_ends_it():
    job = prepared(items=1000)
    thread = thread_of(job, seconds=0.02)
    future = thread.start()
    eventually(lambda: job.job.folder.attempts(), 10, "a child run")
    thread.request_stop(STOP)
    report = future.result(timeout=30)
    assert report.verdict is Verdict.CANCELLED
    assert report.items.not_started > 0


def test_a_stop_that_cannot_be_written_by_the_caller_is_written_by_the_reactor(monkeypatch):
    job = prepared(items=1000)
    thread = thread_of(job, seconds=0.02)
    future = thread.start()
    eventually(lambda: job.job.folder.attempts(), 10, "a child run")
    write, away = job.job.folder.request_stop, threading.Event()

    def unwritable(record: StopRecord) -> StopRecord:
        if not away.is_set():
            away.set()
            raise StoreUnavailableError("the storage is away (simulated)")
        return write(record)

    monkeypatch.setattr(job.job.folder, "request_stop", unwritable)
    thread.request_stop(STOP)
    assert future.result(timeout=30).verdict is Verdict.CANCELLED
    assert job.job.folder.read_stop() == STOP


def test_a_stop_reaches_the_reactor_although_the_storage_does_not_answer(monkeypatch):
    monkeypatch.setattr("orchestrator.reactor.thread.AT_ONCE_SECONDS", 0.2)
    monkeypatch.setattr("orchestrator.reactor.perform.AT_ONCE_SECONDS", 0.2)
    job = prepared(items=1000)
    thread = thread_of(job, seconds=0.02)
    future = thread.start()
    eventually(lambda: job.job.folder.attempts(), 10, "a child run")
    write, silent, back = job.job.folder.request_stop, [], threading.Event()

    def hangs(record: StopRecord) -> StopRecord:
        silent.append(record)
        if not back.wait(20):
            raise AssertionError("nobody went on without it")
        return write(record)

    monkeypatch.setattr(job.job.folder, "request_stop", hangs)
    thread.request_stop(STOP)
    assert not back.is_set(), "whoever asks is not held up"
    eventually(lambda: thread._reactor is not None and thread._reactor.state.stop == STOP, 10, "the reactor stops")
    eventually(lambda: len(silent) >= 2, 10, "it writes the stop as well")
    back.set()
    assert future.result(timeout=30).verdict is Verdict.CANCELLED
    assert job.job.folder.read_stop() == STOP


def test_an_abandoned_job_ends_without_a_stop_and_without_a_report():
    job = prepared(items=1000)
    thread = thread_of(job, seconds=0.02)
    future = thread.start()
    eventually(lambda: job.job.folder.attempts(), 10, "a child run")
    thread.abandon()
    with pytest.raises(JobConflictError):
        future.result(timeout=20)
    assert job.job.folder.read_stop() is None
    assert job.job.folder.read_report() is None


def test_a_stop_after_the_end_does_no_harm():
    thread = thread_of(prepared())
    thread.start().result(timeout=20)
    thread.abandon()
    thread.request_stop(STOP)


@pytest.mark.parametrize("error", [EngineUnavailableError("Prefect is away"), ValueError("a bug")])
def test_what_goes_wrong_before_the_reactor_exists_reaches_the_caller(error):
    async def broken(gateway: Gateway) -> Reactor:
        raise error

    with pytest.raises(type(error), match=str(error)):
        thread_of(prepared(), make=broken).start().result(timeout=20)


@pytest.mark.parametrize("error", [ValueError("a bug"), InvalidTransitionError("a bug too")])
def test_an_error_of_our_own_leaves_a_stop_so_that_no_child_runs_on_unwatched(error):
    job = prepared()

    async def broken(gateway: Gateway) -> Reactor:
        raise error

    with pytest.raises(type(error)):
        thread_of(job, make=broken).start().result(timeout=20)
    stop = job.job.folder.read_stop()
    assert stop is not None
    assert (stop.mode, stop.cause) == (StopMode.CANCEL, StopCause.FAILED)
    assert type(error).__name__ in stop.reason


def test_while_prefect_is_away_no_stop_is_left_so_that_the_job_can_be_resumed():
    job = prepared()

    async def broken(gateway: Gateway) -> Reactor:
        raise EngineUnavailableError("Prefect is away")

    with pytest.raises(EngineUnavailableError):
        thread_of(job, make=broken).start().result(timeout=20)
    assert job.job.folder.read_stop() is None


def test_an_error_of_our_own_reaches_the_caller_although_the_stop_cannot_be_written(monkeypatch):
    job = prepared()

    def unwritable(record: StopRecord) -> StopRecord:
        raise StoreUnavailableError("the storage is away (simulated)")

    async def broken(gateway: Gateway) -> Reactor:
        monkeypatch.setattr(job.job.folder, "request_stop", unwritable)
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        thread_of(job, make=broken).start().result(timeout=20)


def test_whoever_waits_for_the_job_cannot_cancel_it():
    job = prepared(items=200)
    future: Future = thread_of(job, seconds=0.01).start()
    assert not future.cancel()

    async def wait_and_be_cancelled() -> None:
        waiting = asyncio.ensure_future(asyncio.shield(asyncio.wrap_future(future)))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(wait_and_be_cancelled())
    assert future.result(timeout=20).items.succeeded == 200


def test_the_thread_works_in_the_context_of_its_caller():
    place = contextvars.ContextVar("place", default="nowhere")
    place.set("in the flow run")
    seen: list[str] = []
    job = prepared()

    async def make(gateway: Gateway) -> Reactor:
        seen.append(place.get())
        return Reactor(job.job, gateway, log=LOG)

    thread_of(job, make=make).start().result(timeout=20)
    assert seen == ["in the flow run"]


def test_the_gateway_is_closed_and_the_sign_of_life_ends_with_the_job():
    job = prepared()
    closed: list[bool] = []

    class Closing(MemoryGateway):
        async def close(self) -> None:
            closed.append(True)

    async def open_one() -> Gateway:
        return Closing(engine=SimulatedEngine(SimulatedBatches(lambda i: i, seconds_per_item=0), latencies=INSTANT))

    thread_of(job, open_gateway=open_one).start().result(timeout=20)
    assert closed == [True]
    assert not job.heart._thread.is_alive()
