"""The reactor in a thread and loop of its own.

When Prefect cancels a parent, every task of the flow's own loop is cancelled at the same instant, and awaits go on
working for about 29 seconds (measured on Prefect 3.8.8). A job that runs elsewhere is not touched by that: it is
told to stop and uses the time to settle.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

from orchestrator.core.machine import events as ev
from orchestrator.core.model import StopCause, StopRecord
from orchestrator.core.report import Report
from orchestrator.engine.gateway import Gateway
from orchestrator.errors import InternalError, OrchestratorError
from orchestrator.reactor.boundaries import Boundary, passed
from orchestrator.reactor.heart import Heart
from orchestrator.reactor.job import Job
from orchestrator.reactor.loop import Reactor
from orchestrator.reactor.perform import AT_ONCE_SECONDS
from orchestrator.store.bounded import within


def is_our_fault(error: BaseException) -> bool:
    """Whether an error that ended a job is a fault of ours, and no condition of the world that a person can mend."""
    return isinstance(error, InternalError) or (
        isinstance(error, Exception) and not isinstance(error, OrchestratorError)
    )


class JobThread:
    """Runs a job on a thread of its own.

    Args:
        job, heart: The job, and its sign of life (started here, stopped at the end).
        open_gateway: Opens the door to Prefect inside the thread's loop, where its connections must live.
        make: Builds the reactor around the open gateway; asks the server what a resumed job needs.
    """

    def __init__(
        self,
        job: Job,
        heart: Heart,
        open_gateway: Callable[[], Awaitable[Gateway]],
        make: Callable[[Gateway], Awaitable[Reactor]],
        log: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self._job, self._heart, self._open, self._make, self._log = job, heart, open_gateway, make, log
        self._future: Future[Report] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reactor: Reactor | None = None
        self._pending: list[ev.Event] = []
        self._lock = threading.Lock()
        # The flow run's context: logs reach its page, and events carry it as a related resource.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=lambda: context.run(self._main), name=f"job {job.id}", daemon=True)

    def start(self) -> Future[Report]:
        """Begin; the future ends with the report or with the error that ended the job."""
        self._future.set_running_or_notify_cancel()  # so that nobody who waits for it can cancel it
        self._thread.start()
        return self._future

    def request_stop(self, record: StopRecord) -> None:
        """Stop the job: written into its folder at once, in the calling thread, then told to the reactor.

        Where it cannot be written now, or the storage does not answer, the reactor goes on trying.
        """
        try:
            within(AT_ONCE_SECONDS, self._job.folder.request_stop, record)
            written = True
        except (OrchestratorError, OSError):
            written = False
        self._post(ev.StopRequested(record, written=written))

    def abandon(self) -> None:
        """Act no more, and leave the children to finish what they have."""
        self._post(ev.Superseded())

    def _post(self, event: ev.Event) -> None:
        with self._lock:
            if self._loop is None or self._reactor is None:
                self._pending.append(event)
                return
            loop, reactor = self._loop, self._reactor
        try:
            loop.call_soon_threadsafe(reactor.post, event)
        except RuntimeError:
            pass  # the loop is closed: the job is over

    def _main(self) -> None:
        try:
            with asyncio.Runner() as runner:
                report = runner.run(self._run())
        except BaseException as e:  # noqa: BLE001 - whatever ended the thread must reach the caller
            self._future.set_exception(e)
        else:
            self._future.set_result(report)

    async def _run(self) -> Report:
        try:
            self._heart.start()
            passed(Boundary.LEASE_BEGUN)
            gateway = await self._open()
            passed(Boundary.GATEWAY_OPEN)
            try:
                reactor = await self._make(gateway)
                with self._lock:
                    self._loop, self._reactor = asyncio.get_running_loop(), reactor
                    for event in self._pending:
                        reactor.post(event)
                return await reactor.run()
            finally:
                await gateway.close()
        except Exception as e:
            if is_our_fault(e):
                self._leave_stop(e)
            raise
        finally:
            self._heart.stop()
            passed(Boundary.LEASE_ENDED)

    def _leave_stop(self, error: Exception) -> None:
        """An error of ours: nobody watches the children any more; they end as was asked for a parent that ends."""
        self._log.error("The job ends by an error of its own: %s: %s", type(error).__name__, error)
        record = self._job.stop_after(StopCause.FAILED, f"the parent run failed: {type(error).__name__}", "parent run")
        try:
            if record is not None:
                self._job.folder.request_stop(record)
        except (OrchestratorError, OSError) as unwritten:
            self._log.error("The stop could not be written: %s", unwritten)
