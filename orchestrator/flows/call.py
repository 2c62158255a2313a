"""`orchestrate()`: a job from Python, in a flow of one's own or in a script.

Plain functions, so that a retry of the user's flow finds the same job (a subflow would get a new run id each time).
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from orchestrator.core.killswitch import DEFAULT_FAIL_IF, DEFAULT_KILL_SWITCH, Switch
from orchestrator.core.model import StopMode, Verdict
from orchestrator.core.report import Report
from orchestrator.engine.context import ParentRun, outermost_run, run_logger
from orchestrator.engine.gateway import Gateway
from orchestrator.engine.pace import Pace
from orchestrator.engine.parent import PrefectGateway
from orchestrator.errors import ConfigurationError, JobCancelledError, JobFailedError, KillSwitchTrippedError
from orchestrator.flows.plan import Plan, plan
from orchestrator.flows.prepare import Prepared, check_shared, prepare, storage_root, take_over
from orchestrator.flows.request import JobSpec, Limits, make_spec
from orchestrator.flows.requests import BATCH_SECONDS, check_limit
from orchestrator.flows.restore import restore
from orchestrator.reactor import JobThread, JobView, Reactor, Recorder
from orchestrator.reactor.thread import is_our_fault
from orchestrator.settings import Settings
from orchestrator.store import Source, SourcePolicy, as_source

T = TypeVar("T")
OnView = Callable[[JobView], None]
OnFailure = Literal["raise", "return"]

RESULT_PIECE_SECONDS = 1.0
PARENT_CANCELLED_SECONDS = 26.0
"""What a cancelled parent uses to settle: Prefect kills it about 29 s after the request. Source: measured, 3.8.8."""


async def orchestrate(
    deployment: str | Mapping[str, str],
    items: Any,
    *,
    batch_size: int = 100,
    max_in_flight: int = 8,
    kill_switch: str | Switch | Limits | Mapping[str, Any] | None = DEFAULT_KILL_SWITCH,
    parameters: Mapping[str, Any] | None = None,
    on_trip: Literal["cancel", "drain"] = "cancel",
    enough_when: str | Switch | None = None,
    fail_if: str | Switch | None = DEFAULT_FAIL_IF,
    pass_items_as: str = "reference",
    key: str | None = None,
    select: str | None = None,
    weight: str | None = None,
    group_by: str | None = None,
    max_bytes: int | None = None,
    max_weight: float | None = None,
    unique_keys: bool = False,
    skip_succeeded_of: str | None = None,
    job_variables: Mapping[str, Any] | None = None,
    tags: list[str] | tuple[str, ...] = (),
    work_queue_name: str | None = None,
    batch_retries: int | None = None,
    isolate_crashing_items: bool = True,
    start_timeout_seconds: float = 600,
    batch_timeout_seconds: float | None = None,
    max_requests_per_minute: int | None = None,
    on_parent_cancelled: Literal["cancel", "drain", "abandon"] = "cancel",
    job_id: str | None = None,
    storage: str | None = None,
    on_progress: OnView | None = None,
    on_failure: OnFailure = "raise",
) -> Report:
    """Fan a collection of items out over a deployment, and account for every item.

    Inside a flow, calling it again (a retry of the flow) resumes the same job: the n-th call in a run is one job.

    Args:
        deployment: `flow-name/deployment-name`; or `group_by` value -> name, with `*` for every other group.
        items: A list, range, iterable or function that yields; or a text: path or URL (format by suffix), `glob:...`,
            `range:a:b`, `python:module:callable`, `job:<id>?outcome=failed`, `results:<id>`.
        batch_size: Most items of a batch, >= 1.
        max_in_flight: Most child runs at once, 1..1000; limits of pool, queue and deployment lower it.
        kill_switch: Expression, switch or limits that stop the job; None for none.
        parameters: Passed to every child run besides its items.
        on_trip: What a stop does to child runs in flight.
        enough_when: Expression that ends the job early as a success.
        fail_if: Expression that makes a finished job a failure; None for never.
        pass_items_as: `reference` (batch flows), `list:NAME`, `one:NAME` or `parameters` (other flows).
        key, select, weight, group_by: Fields of each item: its label, the part handed on, its weight, its group.
        max_bytes, max_weight: Further limits of a batch.
        unique_keys: Refuse a source in which a key comes twice.
        skip_succeeded_of: Job id, or a pattern as `nightly-*`; items whose key succeeded there are left out.
        job_variables, tags, work_queue_name: Of each child run, as Prefect means them.
        batch_retries: New child runs for a batch that the infrastructure lost; None: 2, or 0 unless by reference.
        isolate_crashing_items: From a batch's third attempt on, find the item that kills its run and fail it alone.
        start_timeout_seconds: A child run may stay Pending so long.
        batch_timeout_seconds: A child run may be Running so long; None for no bound.
        max_requests_per_minute: Most requests that this call makes to Prefect's API in a minute, at least 20; None: as
            `ORCHESTRATOR_MAX_REQUESTS_PER_MINUTE` says, else as many as it needs. Child runs make their own.
        on_parent_cancelled: What becomes of child runs when this run is cancelled or dies: `cancel`; or they finish
            their batch and the job ends (`drain`) or can be resumed (`abandon`).
        job_id: Same id and same request again resume the job. Default: from the outermost flow run, else random.
        storage: fsspec URL under which job folders lie; by default `ORCHESTRATOR_STORAGE`, else in `PREFECT_HOME`.
        on_progress: Called about once a second with a snapshot, from another thread.
        on_failure: `raise` an error with the report when the job did not end well, or `return` the report.

    Returns:
        The report: `succeeded + failed + unknown + not_started == total`.

    Raises:
        ConfigurationError and its kin: the request cannot be carried out; nothing was created.
        EngineUnavailableError: Prefect cannot be reached.
        KillSwitchTrippedError, JobFailedError, JobCancelledError: with `.report`, unless `on_failure="return"`.
    """
    request = {k: v for k, v in locals().items() if k not in ("items", "on_progress", "on_failure")}
    check_on_failure(on_failure)
    call = make_call(request, on_progress)
    prepared = await call.prepare(items)
    return _conclude(await run_async(call, prepared), on_failure)


def orchestrate_sync(
    deployment: str | Mapping[str, str],
    items: Any,
    *,
    on_progress: OnView | None = None,
    on_failure: OnFailure = "raise",
    **parameters: Any,
) -> Report:
    """As `orchestrate`, for flows and scripts that are not async; takes the same parameters."""
    check_on_failure(on_failure)
    call = make_call({"deployment": deployment, **parameters}, on_progress)
    prepared = _in_own_loop(lambda: call.prepare(items))
    return _conclude(_run_sync(call, prepared), on_failure)


def plan_sync(
    deployment: str | Mapping[str, str],
    items: Any,
    *,
    requests_per_minute: int | None = None,
    batch_seconds: float = BATCH_SECONDS,
    **parameters: Any,
) -> Plan:
    """What `orchestrate()` would do with the same parameters; creates nothing.

    Args:
        requests_per_minute: A limit of the server's, which the plan then speaks about.
        batch_seconds: How long a batch is taken to run under that limit.

    Raises:
        ConfigurationError and its kin, EngineUnavailableError: as `orchestrate()` would.
    """
    check_limit(requests_per_minute, batch_seconds)
    call = make_call({"deployment": deployment, **parameters})
    return _in_own_loop(lambda: call.plan(items, requests_per_minute, batch_seconds))


def stage_sync(deployment: str | Mapping[str, str], items: Any, **parameters: Any) -> Prepared:
    """Create the job and run nothing of it: whoever resumes it first becomes its parent.

    Raises:
        ConfigurationError and its kin, EngineUnavailableError: as `orchestrate()` would.
    """
    call = make_call({"deployment": deployment, **parameters})
    return _in_own_loop(lambda: call.prepare(items))


def resume_sync(
    job_id: str,
    *,
    storage: str | None = None,
    on_progress: OnView | None = None,
    on_failure: OnFailure = "raise",
) -> Report:
    """Take an existing job over, as it was staged, and run it to its end.

    Raises:
        JobNotFoundError: there is none of that id in the storage.
        JobConflictError: it is over and did not end well; its items can be run again in a new job.
    """
    settings = Settings()
    call = Call(None, settings, outermost_run(), run_logger(settings.masked_env), on_progress, SourcePolicy())
    prepared = _in_own_loop(lambda: call.take_over(job_id, storage))
    return _conclude(_run_sync(call, prepared), on_failure)


async def resume(
    job_id: str, *, storage: str | None = None, on_progress: OnView | None = None, on_failure: OnFailure = "raise"
) -> Report:
    """As `resume_sync`, async."""
    settings = Settings()
    call = Call(None, settings, outermost_run(), run_logger(settings.masked_env), on_progress, SourcePolicy())
    return _conclude(await run_async(call, await call.take_over(job_id, storage)), on_failure)


# ------------------------------------------------------------------ one call


@dataclass
class Call:
    """One call of ours: where it comes from, and how it speaks."""

    spec: JobSpec | None
    settings: Settings
    parent: ParentRun | None
    log: logging.Logger | logging.LoggerAdapter[Any]
    on_progress: OnView | None
    policy: SourcePolicy
    pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        asked = self.spec.max_requests_per_minute if self.spec else None
        self.pace = Pace(asked or self.settings.max_requests_per_minute, say=self.log.warning)

    async def open_gateway(self) -> Gateway:
        return PrefectGateway(
            masked_env=self.settings.masked_env,
            submit_concurrency=self.settings.submit_concurrency,
            parent=self.parent.id if self.parent else None,
            pace=self.pace,
        )

    @asynccontextmanager
    async def _asked(self, items: Any) -> AsyncIterator[tuple[JobSpec, Source, Gateway]]:
        """What was asked for, and an open door to ask about it."""
        assert self.spec is not None
        root = storage_root(self.spec.storage, self.settings)
        source = as_source(items, storage=root, policy=self.policy)
        gateway = await self.open_gateway()
        try:
            if isinstance(gateway, PrefectGateway):
                check_shared(root)
            yield self.spec, source, gateway
        finally:
            await gateway.close()

    async def prepare(self, items: Any) -> Prepared:
        async with self._asked(items) as (spec, source, gateway):
            return await prepare(
                spec, source, gateway, settings=self.settings, parent=self.parent,
                on_staging=self._on_staging, say=self.log.warning,
            )  # fmt: skip

    async def plan(self, items: Any, requests_per_minute: int | None, batch_seconds: float) -> Plan:
        async with self._asked(items) as (spec, source, gateway):
            return await plan(
                spec, source, gateway, settings=self.settings, parent=self.parent,
                requests_per_minute=requests_per_minute, batch_seconds=batch_seconds,
            )  # fmt: skip

    async def take_over(self, job_id: str, storage: str | None) -> Prepared:
        gateway = await self.open_gateway()
        try:
            return await take_over(
                job_id, storage_root(storage, self.settings), gateway,
                settings=self.settings, parent=self.parent, say=self.log.warning,
            )  # fmt: skip
        finally:
            await gateway.close()

    def _on_staging(self, items: int, size: int) -> None:
        if items and items % 100_000 == 0:
            self.log.info("Staged %d items (%d MB) so far.", items, size // 1_000_000)

    def thread(self, prepared: Prepared) -> JobThread:
        self.pace.limit(prepared.max_requests_per_minute)

        async def make(gateway: Gateway) -> Reactor:
            restored = await restore(prepared.job, gateway) if prepared.resumed else []
            return Reactor(
                prepared.job, gateway, log=self.log, on_view=self.on_progress, restored=restored,
                max_waits=self.settings.max_waits,
                recorder=Recorder(prepared.job) if self.settings.record_events else None,
                unwritable=lambda: prepared.heart.trouble,
            )  # fmt: skip

        return JobThread(prepared.job, prepared.heart, self.open_gateway, make, self.log)

    def interrupt(self, thread: JobThread, prepared: Prepared) -> None:
        """Who waits for the job was interrupted: end it, or leave it, as was asked for."""
        record = prepared.job.stop_of_cancelled(self.parent.name if self.parent else "this process")
        if record is None:
            thread.abandon()
            return
        how = "child runs finish their batch" if record.mode is StopMode.DRAIN else "stopping its child runs"
        self.log.warning("This run was cancelled: %s.", how)
        thread.request_stop(record)


def make_call(
    request: Mapping[str, Any], on_progress: OnView | None = None, policy: SourcePolicy | None = None
) -> Call:
    """A call from the parameters of `orchestrate()`.

    Raises:
        ConfigurationError: a parameter is wrong by itself.
    """
    parent = outermost_run()
    given = {k: v for k, v in request.items() if v is not None or k in ("kill_switch", "fail_if")}
    for name in ("parameters", "job_variables"):
        if isinstance(given.get(name), Mapping):
            given[name] = dict(given[name])
    spec = make_spec(**given)
    if spec.job_id is None and parent is not None:
        spec = spec.model_copy(update={"job_id": f"{parent.id}-{_nth_call(parent)}"})
    settings = Settings()
    log = run_logger(settings.masked_env)
    return Call(spec, settings, parent, log, on_progress, policy or SourcePolicy())


_calls: dict[tuple[str, int], int] = {}
_calls_lock = threading.Lock()


def _nth_call(parent: ParentRun) -> int:
    """Which call of ours this is in the run, counted anew each time Prefect runs it."""
    with _calls_lock:
        n = _calls[(parent.id, parent.run_count)] = _calls.get((parent.id, parent.run_count), 0) + 1
    return n


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


def _run_sync(call: Call, prepared: Prepared) -> Report:
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
                _in_own_loop(lambda: _settle_after_our_fault(call, prepared))
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


def _in_own_loop(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
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


def check_on_failure(value: str) -> None:
    """Refuse a word that would be noticed only after the job.

    Raises:
        ConfigurationError: it is neither `raise` nor `return`.
    """
    if value not in ("raise", "return"):
        raise ConfigurationError(f"must be 'raise' or 'return', got {value!r}", field="on_failure")


def _conclude(report: Report, on_failure: OnFailure) -> Report:
    if report.ok or on_failure == "return":
        return report
    message = f"job {report.job_id}: {report.headline}"
    if report.verdict is Verdict.TRIPPED:
        raise KillSwitchTrippedError(message, report=report)
    if report.verdict is Verdict.CANCELLED:
        raise JobCancelledError(message, report=report)
    raise JobFailedError(message, report=report)
