"""Waiting for a job that runs in a thread of its own: from async code, from sync code, and when the wait is cut short.

Whoever waits may be cancelled, timed out or interrupted at any moment; the job is then ended, or left, as was asked.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from orchestrator.core.report import Report
from orchestrator.flows.calling import Call
from orchestrator.flows.prepare import Prepared
from orchestrator.reactor import JobThread
from orchestrator.reactor.thread import is_our_fault

T = TypeVar("T")

RESULT_PIECE_SECONDS = 1.0
PARENT_CANCELLED_SECONDS = 26.0
"""What a cancelled parent uses to settle: Prefect kills it about 29 s after the request. Source: measured, 3.8.8."""


async def run_async(call: Call, prepared: Prepared) -> Report:
    if prepared.old_report is not None:
        call.log.warning("Job %s was finished before: its report is returned, nothing is run.", prepared.job.id)
        return prepared.old_report
    thread = call.thread(prepared)
    ended = asyncio.wrap_future(thread.start())
    try:
        return await asyncio.shield(ended)
    except asyncio.CancelledError:
        call.interrupt(thread, prepared)
        if not prepared.abandons:
            await _settled_within(ended, PARENT_CANCELLED_SECONDS)
        _silence(ended)
        raise
    except Exception as e:
        if is_our_fault(e):
            await _settle_after_our_fault(call, prepared)
        raise


def run_sync(call: Call, prepared: Prepared) -> Report:
    if prepared.old_report is not None:
        call.log.warning("Job %s was finished before: its report is returned, nothing is run.", prepared.job.id)
        return prepared.old_report
    thread = call.thread(prepared)
    ended = thread.start()
    try:
        return _result(ended)
    except BaseException as e:
        if ended.done() and ended.exception() is e:
            if is_our_fault(e):
                in_own_loop(lambda: _settle_after_our_fault(call, prepared))
            raise
        # KeyboardInterrupt, Prefect's TerminationSignal, a flow's timeout: not the job's own end.
        call.interrupt(thread, prepared)
        if not prepared.abandons:
            _wait(ended, PARENT_CANCELLED_SECONDS)
        raise


def _result(ended: Future[Report]) -> Report:
    """The report, waited for in pieces.

    Prefect times a sync flow out in a thread by an exception that arrives between two steps of Python: never, while one
    waits for a lock. Source: prefect _internal/concurrency/cancellation.py (WatcherThreadCancelScope), 3.8.8.
    """
    while True:
        try:
            return ended.result(timeout=RESULT_PIECE_SECONDS)
        except TimeoutError:
            if ended.done():
                return ended.result()


async def _settle_after_our_fault(call: Call, prepared: Prepared) -> None:
    """A fault of ours ended the job's loop: a fresh one ends what is left of it, and writes the report."""
    job = prepared.job
    if prepared.abandons:
        return
    thread: JobThread | None = None
    try:
        again = await call.take_over(job.id, job.folder.url.rpartition("/")[0])
        if again.old_report is not None:
            return
        thread = call.thread(again)
        await asyncio.shield(asyncio.wrap_future(thread.start()))
    except Exception as e:  # noqa: BLE001 - the first error is the one to raise
        call.log.error("The job could not be settled: %s. Its child runs end by themselves.", e)
    except BaseException:
        if thread is not None:
            thread.abandon()
        raise


async def _settled_within(ended: asyncio.Future[Report], seconds: float) -> None:
    """Wait for the job's end, at most so long; whoever cancels again does not cut that short."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not ended.done() and (left := deadline - loop.time()) > 0:
        try:
            await asyncio.wait([ended], timeout=left)
        except asyncio.CancelledError:
            continue  # the first one is raised in the end


def _wait(future: Future[Report], seconds: float) -> None:
    try:
        future.result(timeout=seconds)
    except Exception:  # noqa: BLE001 - the interruption is what is raised, not how the job took it
        pass


def _silence(future: asyncio.Future[Report]) -> None:
    """Nobody will look at how the job ended: its error must not be reported as forgotten."""
    future.add_done_callback(lambda f: f.cancelled() or f.exception())


def in_own_loop(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on a loop of its own, in a thread: a running loop of the caller is no matter."""
    result: Future[T] = Future()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            result.set_result(asyncio.run(make()))
        except BaseException as e:  # noqa: BLE001 - it is raised in the caller
            result.set_exception(e)

    threading.Thread(target=lambda: context.run(work), daemon=True, name="job-preparation").start()
    return result.result()
