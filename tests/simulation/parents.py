"""Simulated parents: the real preparation, restoring and reactor, each in a process that can die at any step."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Any

from orchestrator.core.machine import events as ev
from orchestrator.core.model import StopCause, StopMode, StopRecord
from orchestrator.core.report import Report
from orchestrator.engine.memory import MemoryGateway
from orchestrator.engine.pace import Pace
from orchestrator.errors import (
    EngineUnavailableError,
    InternalError,
    JobConflictError,
    JobNotFoundError,
    OrchestratorError,
    StorageError,
    StoreUnavailableError,
)
from orchestrator.flows.prepare import Prepared, prepare, take_over
from orchestrator.flows.request import make_spec
from orchestrator.flows.restore import restore
from orchestrator.reactor import Reactor, boundaries
from orchestrator.reactor.boundaries import Boundary, passed
from orchestrator.reactor.loop import failed_stop
from orchestrator.reactor.perform import Io
from orchestrator.reactor.recording import Recorder
from orchestrator.settings import Settings
from orchestrator.store import as_source
from tests.simulation.processes import OWNER, DiedError, Process, ProcessLoop
from tests.simulation.scenario import Death

if TYPE_CHECKING:
    from tests.simulation.world import World

JOB, STORAGE = "j", "memory://simulated"
LOG = logging.getLogger("tests.simulation.parents")


class Watched(Reactor):
    """A parent's loop, that remembers the window in force when each creation was decided."""

    windows: dict[str, int]

    def _do(self, command: ev.Command) -> None:
        if isinstance(command, ev.Submit):
            # A creation of unknown outcome holds its place and is asked for again: decided once.
            self.windows.setdefault(self._job.key(command.batch, command.attempt), self.state.window)
        super()._do(command)


class Parent(Process):
    """One parent process.

    Args:
        number: Which one of the job, from 0.
        death: How it ends before its time; None: not.

    Attributes:
        over: Done when it ended: with its report, with None when it died or stood down; else its error.
    """

    def __init__(self, world: World, number: int, death: Death | None, settings: Settings) -> None:
        step = int(death.at) if death is not None and death.how == "step" else None
        super().__init__(f"parent {number + 1}", self._died, dies_at_step=step)
        self.world, self.number, self.death, self.settings = world, number, death, settings
        self.loop: ProcessLoop = asyncio.get_running_loop()  # type: ignore[assignment]
        self.over: asyncio.Future[Report | None] = self.loop.create_future()
        self.reactor: Reactor | None = None
        self.prepared: Prepared | None = None
        self.claimed_at = self.loop.time()
        self.read_stop_at = float("inf")
        self.windows: dict[str, int] = {}  # key -> window when its creation was decided
        self._uses = 0
        self._passed: dict[Boundary, int] = {}
        self._chance = random.Random(f"parent/{world.scenario.seed}/{number}")

    def start(self) -> None:
        self.task = self.run(self.loop, self._main())
        if self.death is not None and self.death.how == "time":
            self.world._later(self.death.at, self.loop.kill, self)

    def _died(self) -> None:
        self.world.inject("parent died")
        self.world.inject(f"parent died ({self.death.how})" if self.death else "parent died (unplanned)")
        self.world.tell(None, f"{self.name} dies")
        if not self.over.done():
            self.over.set_result(None)

    # ------------------------------------------------------------------ its life

    async def _main(self) -> None:
        try:
            report = await self._life()
        except JobConflictError as e:
            self.world.tell(None, f"{self.name} stands down: {e}")
            self._end(None)
        except (EngineUnavailableError, StoreUnavailableError, StorageError, JobNotFoundError) as e:
            self.world.tell(None, f"{self.name} gives up: {type(e).__name__}: {e}")
            self._end(None)
        except Exception as e:
            self.world.violate("error", f"{self.name} ends by {type(e).__name__}: {e}")
            LOG.debug("a parent ends by an error", exc_info=True)
            self._end(e)
        else:
            self._end(report)

    def _end(self, what: Report | Exception | None) -> None:
        self.alive = False
        if not self.over.done():
            self.over.set_result(what if isinstance(what, Report) else None)

    async def _life(self) -> Report:
        world, request = self.world, dict(self.world.scenario.request)
        if world.scenario.deployments > 1:
            request["group_by"] = "group"
        self.world.tell(None, f"{self.name} begins")
        gateway = MemoryGateway(
            engine=self.world,
            submit_concurrency=self.settings.submit_concurrency,
            pace=Pace(self.world.scenario.budget),
        )
        if self.number == 0 or self._chance.random() < 0.3:  # Prefect's retry gives the same request again
            spec = make_spec(job_id=JOB, storage=STORAGE, deployment=_deployments(world), **request)
            source = as_source(_items(world), storage=STORAGE)
            prepared = await prepare(spec, source, gateway, settings=self.settings)
        else:
            prepared = await take_over(JOB, STORAGE, gateway, settings=self.settings)
        self.prepared, self.claimed_at = prepared, self.loop.time()
        if prepared.old_report is not None:
            return prepared.old_report
        try:
            return await self._act(prepared, gateway)
        except Exception as e:
            if not isinstance(e, OrchestratorError) or isinstance(e, InternalError):
                prepared.job.folder.request_stop(failed_stop(f"the parent run failed: {type(e).__name__}"))
            raise

    async def _act(self, prepared: Prepared, gateway: MemoryGateway) -> Report:
        """As `JobThread` does."""
        job = prepared.job
        prepared.heart.beat()
        passed(Boundary.LEASE_BEGUN)
        beating = asyncio.ensure_future(self._beat(prepared))
        passed(Boundary.GATEWAY_OPEN)
        try:
            restored = await restore(job, gateway) if prepared.resumed else ()
            recorder = Recorder(job) if prepared.settings.record_events else None
            self.reactor = Watched(
                job, gateway, log=LOG, restored=restored, max_waits=self.settings.max_waits, io=Io(inline=True),
                recorder=recorder,
            )  # fmt: skip
            self.reactor.windows = self.windows
            return await self.reactor.run()
        finally:
            beating.cancel()
            passed(Boundary.LEASE_ENDED)

    async def _beat(self, prepared: Prepared) -> None:
        while True:
            await asyncio.sleep(prepared.settings.beat_seconds)
            try:
                prepared.heart.beat()
            except (OrchestratorError, OSError):
                continue

    # ------------------------------------------------------------------ what happens to it

    def cancel(self) -> None:
        """Prefect cancels this parent's run, as `flows/waiting.py` takes it."""
        if self.prepared is None or self.reactor is None or not self.alive:
            return
        self.world.inject("parent cancelled")
        if self.prepared.abandons:
            self.reactor.post(ev.Superseded())
            return
        record = StopRecord(StopMode.CANCEL, StopCause.PARENT_CANCELLED, "the parent run was cancelled", self.name)
        try:
            self.prepared.job.folder.request_stop(record)
            written = True
        except (OrchestratorError, OSError):
            written = False
        self.reactor.post(ev.StopRequested(record, written=written))

    def passes(self, boundary: Boundary) -> None:
        death, count = self.death, self._passed.get(boundary, 0) + 1
        self._passed[boundary] = count
        if death is not None and death.how == "boundary" and death.boundary is boundary and count == death.at:
            self._die_here()

    def about_to_use_storage(self) -> None:
        if not self.alive:
            raise DiedError
        self._uses += 1
        if (
            self.death is not None
            and self.death.how == "store"
            and self._uses == self.death.at
            and not self.death.after
        ):
            self._die_here()

    def has_used_storage(self) -> None:
        if self.death is not None and self.death.how == "store" and self._uses == self.death.at and self.death.after:
            self._die_here()

    def _die_here(self) -> None:
        self.loop.kill(self)
        raise DiedError

    def storage_is_away(self) -> bool:
        since = self.loop.time() - self.world.began
        return any(begin <= since < end for begin, end in self.world.scenario.store_outages)

    def late_to_stop(self, written_at: float) -> float | None:
        """Seconds since this parent must have known of a stop written then; None when it may not know yet."""
        now, scenario = self.loop.time(), self.world.scenario
        if now > self.read_stop_at:
            return now - self.read_stop_at
        reachable = not scenario.store_outages and not scenario.store_glitches
        known_by = max(written_at, self.claimed_at) + 2.0 + 0.1
        return now - known_by if reachable and now > known_by else None


def install_hook() -> None:
    """From now on boundaries are told to the parent that passes them."""

    def hook(boundary: Boundary) -> None:
        owner: Any = OWNER.get()
        if owner is not None:
            owner.passes(boundary)

    boundaries.hook = hook


def _deployments(world: World) -> Any:
    two = {"0": "simulated/batches", "1": "simulated/others"}
    return "simulated/batches" if world.scenario.deployments == 1 else two


def _items(world: World) -> Any:
    scenario = world.scenario
    if scenario.deployments == 1:
        return range(scenario.total)
    # Two deployments of one flow, which share the scope of keys: groups of whole batches in turn.
    size = scenario.batch_size
    return [{"n": n, "group": str(n // size % 2)} for n in range(scenario.total)]
