"""Jobs without a server, in virtual time: for tests of one's own flows, and for our own.

    from orchestrator.testing import simulate

    def test_too_many_failures_stop_the_job():
        simulation = simulate(process, range(1000), kill_switch="failed >= 10")
        assert simulation.report.verdict == "tripped"

The parent is the real one; Prefect and the child runs are simulated: children run `process` item by item, keep the real
ledger, obey stops, and take as long as they are told. An hour of it takes a moment.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.core.model import BatchReference, EndReason, Item, ItemOutcome, Phase, Progress, StopMode
from orchestrator.core.report import Report
from orchestrator.engine.faults import Faults
from orchestrator.engine.memory import MemoryGateway, SimulatedEngine
from orchestrator.engine.pace import Pace
from orchestrator.engine.simulated import TYPICAL, Latencies, SimulatedRun
from orchestrator.engine.virtual import run as run_virtually
from orchestrator.errors import AttemptTakenError, ConfigurationError, InternalError, OrchestratorError
from orchestrator.flows.prepare import Prepared, prepare, take_over
from orchestrator.flows.request import make_spec
from orchestrator.flows.restore import restore
from orchestrator.reactor import JobView, Reactor, Recorder
from orchestrator.reactor.perform import Io
from orchestrator.settings import Settings
from orchestrator.store import Counting, EndRecord, JobFolder, Ledger, OutcomeRecord, as_source
from orchestrator.store.ledger import refuse

DEPLOYMENT = "simulated/batches"
"""The deployment that a simulated engine has from the start."""


@dataclass(frozen=True)
class Simulation:
    """A simulated job that is over.

    Args:
        report: As `orchestrate()` returns it.
        folder: The job's folder: `folder.outcomes()` gives every item's outcome and result.
        engine: The simulated Prefect: its runs, pages and events.
        seconds: Virtual time that the job took.
    """

    report: Report
    folder: JobFolder
    engine: SimulatedEngine
    seconds: float


class SimulatedBatches:
    """What simulated children do: run a function over the items of their batch, with a real ledger.

    Args:
        process: Called with each item; what it returns is the result, what it raises fails the item.
        seconds_per_item: Virtual time per item; a function of the item for uneven work.
        fence_seconds: How often a child looks for a stop or for its revocation.
        grace_seconds: What it gives, besides, to an earlier attempt that may still be at work.
        on_start: Told (item index, virtual time) for each item that starts, for those who check on children.
    """

    def __init__(
        self,
        process: Callable[[Any], Any],
        *,
        seconds_per_item: float | Callable[[Any], float] = 0.1,
        fence_seconds: float = 2.0,
        grace_seconds: float = 10.0,
        on_start: Callable[[int, float], None] | None = None,
    ) -> None:
        self._process, self._fence, self._grace, self._on_start = process, fence_seconds, grace_seconds, on_start
        self._seconds = seconds_per_item if callable(seconds_per_item) else lambda _: seconds_per_item

    async def __call__(self, run: SimulatedRun) -> Phase:
        reference = run.reference
        folder = JobFolder(reference.folder)
        if (reason := _closed(folder, reference)) is not None:
            run.state_name = reason.value.title()
            return Phase.CANCELLED
        try:
            items = folder.read_items(reference)
        except ConfigurationError as e:  # as the real child does
            refuse(folder, reference.batch, reference.attempt, reference.start, e, str(e))
            return Phase.FAILED
        if folder.unended_before(reference.batch, reference.attempt):
            await asyncio.sleep(self._fence + self._grace)
        ledger = Ledger(folder, reference.batch, reference.attempt, reference.count, start=reference.start)
        try:
            carried = ledger.open()
        except AttemptTakenError:
            return Phase.FAILED
        counting = Counting(carried.counts)
        alive = asyncio.ensure_future(_say_alive(folder, reference))
        try:
            left = [item for item in items if item.index not in carried.outcomes]
            reason = await self._items(run, reference, folder, ledger, left, counting)
        finally:
            alive.cancel()
        ledger.end(EndRecord(reason, counting.counts()))
        if reason is not EndReason.COMPLETED:
            run.state_name = reason.value.title()
            return Phase.CANCELLED
        counts = counting.counts()
        return Phase.FAILED if counts.failed and not counts.succeeded else Phase.COMPLETED

    async def _items(
        self,
        run: SimulatedRun,
        reference: BatchReference,
        folder: JobFolder,
        ledger: Ledger,
        items: Sequence[Item],
        counting: Counting,
    ) -> EndReason:
        loop = asyncio.get_running_loop()
        looked, told, sequence = loop.time(), loop.time(), 0
        for item in items:
            if loop.time() - looked >= self._fence:
                looked = loop.time()
                if (reason := _closed(folder, reference)) is not None:
                    return reason
            if run.cancel_requested.is_set():
                return EndReason.TERMINATED
            if self._on_start is not None:
                self._on_start(item.index, loop.time())
            await asyncio.sleep(self._seconds(item.value))
            record = _outcome(item.index, item.key, self._process, item.value)
            ledger.record(record)
            counting.add(record)
            if loop.time() - told >= 2.0:
                told, sequence = loop.time(), sequence + 1
                run.report(Progress(reference.batch, reference.attempt, sequence, counting.counts()))
        return EndReason.COMPLETED


def simulate(
    process: Callable[[Any], Any],
    items: Any,
    *,
    seconds_per_item: float | Callable[[Any], float] = 0.1,
    faults: Faults | None = None,
    latencies: Latencies = TYPICAL,
    capacity: int | None = None,
    settings: Settings | None = None,
    on_progress: Callable[[JobView], None] | None = None,
    **request: Any,
) -> Simulation:
    """Run a whole job in virtual time.

    Args:
        process: What each child does with each item.
        items: As in `orchestrate()`.
        seconds_per_item: Virtual time per item.
        faults: What goes wrong in the simulated Prefect; nothing by default.
        latencies: How long its parts take.
        capacity: Slots of its work pool; None for no limit.
        request: Further parameters of `orchestrate()`, e.g. `kill_switch`, `max_in_flight`.

    Raises:
        ConfigurationError and its kin: as `orchestrate()` would.
    """
    children = SimulatedBatches(process, seconds_per_item=seconds_per_item)

    async def whole() -> Simulation:
        engine = SimulatedEngine(children, capacity=capacity, latencies=latencies, faults=faults)
        return await simulate_on(engine, items, settings=settings, on_progress=on_progress, **request)

    return run_virtually(whole())


async def simulate_on(
    engine: SimulatedEngine,
    items: Any,
    *,
    settings: Settings | None = None,
    on_progress: Callable[[JobView], None] | None = None,
    on_reactor: Callable[[Reactor], None] | None = None,
    **request: Any,
) -> Simulation:
    """Run a job on a simulated engine of one's own, inside its (virtual) loop; the same `job_id` again resumes."""
    settings = settings or Settings()
    request.setdefault("storage", f"memory://simulation-{secrets.token_hex(4)}")
    spec = make_spec(**{"deployment": DEPLOYMENT, **request})
    pace = Pace(spec.max_requests_per_minute or settings.max_requests_per_minute)
    gateway = MemoryGateway(engine=engine, submit_concurrency=settings.submit_concurrency, pace=pace)
    prepared = await prepare(spec, as_source(items, storage=spec.storage), gateway, settings=settings)
    return await _run(prepared, engine, gateway, on_progress, on_reactor)


async def take_over_on(
    engine: SimulatedEngine,
    job_id: str,
    storage: str,
    *,
    settings: Settings | None = None,
    on_reactor: Callable[[Reactor], None] | None = None,
) -> Simulation:
    """Resume a job on a simulated engine, as `orchestrator resume` would."""
    gateway = MemoryGateway(engine=engine)
    prepared = await take_over(job_id, storage, gateway, settings=settings or Settings())
    return await _run(prepared, engine, gateway, None, on_reactor)


async def _run(
    prepared: Prepared,
    engine: SimulatedEngine,
    gateway: MemoryGateway,
    on_progress: Callable[[JobView], None] | None,
    on_reactor: Callable[[Reactor], None] | None,
) -> Simulation:
    loop = asyncio.get_running_loop()
    began = loop.time()
    folder = prepared.job.folder
    if prepared.old_report is not None:
        return Simulation(prepared.old_report, folder, engine, 0.0)
    prepared.heart.beat()
    reactor = Reactor(
        prepared.job,
        gateway,
        log=logging.getLogger("orchestrator.testing"),
        on_view=on_progress,
        restored=await restore(prepared.job, gateway) if prepared.resumed else (),
        max_waits=prepared.settings.max_waits,
        io=Io(inline=True),
        recorder=Recorder(prepared.job) if prepared.settings.record_events else None,
    )
    if on_reactor is not None:
        on_reactor(reactor)
    return Simulation(await reactor.run(), folder, engine, loop.time() - began)


async def _say_alive(folder: JobFolder, reference: BatchReference) -> None:
    """A child's sign of life, as its fence writes it."""
    period, counter = folder.read_job().spec["child"].get("alive_seconds") or 0, 0
    while period:
        counter += 1
        try:
            folder.write_alive(reference.batch, reference.attempt, counter)
        except (OrchestratorError, OSError):
            pass
        await asyncio.sleep(period)


def _closed(folder: JobFolder, reference: BatchReference) -> EndReason | None:
    """Why a child may not go on, as its fence would find."""
    stop = folder.read_stop()
    if stop is not None and stop.mode is StopMode.CANCEL:
        return EndReason.STOPPED
    return EndReason.REVOKED if folder.is_revoked(reference.batch, reference.attempt) else None


def _outcome(index: int, key: str, process: Callable[[Any], Any], value: Any) -> OutcomeRecord:
    try:
        result = process(value)
    except Exception as e:  # noqa: BLE001 - whatever the user's function raises fails its item
        return OutcomeRecord(
            index, key, ItemOutcome.FAILED, error_type=type(e).__name__, error_text=str(e)[:500] or type(e).__name__
        )
    return OutcomeRecord(index, key, ItemOutcome.SUCCEEDED, result=result)


def outcomes(simulation: Simulation) -> dict[int, ItemOutcome]:
    """Every item's outcome by index.

    Raises:
        InternalError: an item has none, or two (which would be a bug of ours).
    """
    found: dict[int, ItemOutcome] = {}
    for record in simulation.folder.outcomes():
        if record.index in found:
            raise InternalError(f"item {record.index} has two outcomes")
        found[record.index] = record.outcome
    if len(found) != simulation.report.items.total:
        raise InternalError(f"{simulation.report.items.total - len(found)} items have no outcome")
    return found


__all__ = ["DEPLOYMENT", "SimulatedBatches", "Simulation", "outcomes", "simulate", "simulate_on", "take_over_on"]
