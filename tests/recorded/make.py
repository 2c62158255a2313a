"""Record the simulated jobs of this folder anew: `python -m tests.recorded.make`.

Each is a whole job on the simulated Prefect, with what its name says; what its parents recorded is saved as
`orchestrator replay --save` saves it. Only to be run when the form of recorded events changes: an old recording that
still replays is worth more than a new one.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.cli.replaying import save
from orchestrator.core.machine import events as ev
from orchestrator.core.model import StopCause, StopMode, StopRecord
from orchestrator.engine.faults import Fate, Faults, Rates
from orchestrator.engine.memory import MemoryGateway, SimulatedEngine
from orchestrator.engine.virtual import run as run_virtually
from orchestrator.flows.prepare import prepare
from orchestrator.flows.request import make_spec
from orchestrator.reactor import Reactor, Recorder
from orchestrator.reactor.perform import Io
from orchestrator.settings import Settings
from orchestrator.store import JobFolder, as_source
from orchestrator.store.journal import open_journal, parents
from orchestrator.testing import DEPLOYMENT, SimulatedBatches, simulate, take_over_on

FOLDER = Path(__file__).parent
logger = logging.getLogger(__name__)
_numbers = itertools.count()
HEAVY = Rates(unavailable=0.02, crash=0.2, vanish=0.03, delete=0.05, cancel=0.02, false_crash=0.05, resurrect=0.05)


def a_fifth_fails(n: int) -> int:
    if n % 5 == 0:
        raise ValueError(f"item {n} is confidential")
    return n


def quiet(**request: Any) -> JobFolder:
    return simulate(lambda n: n, range(40), batch_size=5, max_in_flight=3, job_id="quiet", **request).folder


def trip(mode: str) -> JobFolder:
    return simulate(
        a_fifth_fails, range(120), batch_size=8, max_in_flight=4, kill_switch="failed >= 8 and failed_rate > 0.1",
        on_trip=mode, faults=Faults(seed=5, rates=Rates(unavailable=0.0)),
    ).folder  # fmt: skip


def faults(seed: int) -> JobFolder:
    return driven(Faults(seed=seed, rates=HEAVY), kill_switch="crashed_batches >= 6 or stalled > 900")


def isolation() -> JobFolder:
    """A batch whose first two runs die: from the third on it takes its items one by one."""
    fate = Fate(crash_after=0.25)
    dies = Faults(fates=lambda s: fate if s.key.endswith(("/2/0", "/2/1")) else None)
    return simulate(a_fifth_fails, range(40), batch_size=5, max_in_flight=3, faults=dies, fail_if=None).folder


def outage() -> JobFolder:
    """Prefect is away for a minute, and somebody deletes a run."""
    deleted = Fate(delete_after=1.0)
    away = Faults(fates=lambda s: deleted if s.key.endswith("/2/0") else None)
    away.outage(9.0, 70.0)
    return driven(away)


def stop() -> JobFolder:
    """First a drain, then a cancel, while creations are lost."""

    async def twice(reactor: Reactor) -> None:
        await asyncio.sleep(12)
        reactor.post(ev.StopRequested(StopRecord(StopMode.DRAIN, StopCause.REQUESTED, "a secret of ours", "Ann")))
        await asyncio.sleep(4)
        reactor.post(ev.StopRequested(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "it takes too long", "Bob")))

    return driven(Faults(seed=2, rates=Rates(unavailable=0.0, lost_answer=0.3)), meanwhile=twice)


def controls() -> JobFolder:
    async def turn(reactor: Reactor) -> None:
        for pause, change in (
            (5, ev.ControlChanged(max_in_flight=6)), (5, ev.ControlChanged(paused=True)),
            (20, ev.ControlChanged(paused=False, max_in_flight=2)),
        ):  # fmt: skip
            await asyncio.sleep(pause)
            reactor.post(change)

    return driven(None, meanwhile=turn)


def resumed() -> JobFolder:
    """A parent that dies, and one that takes over from what it finds."""
    return driven(Faults(seed=11, rates=HEAVY), dies_after=20.0)


def driven(
    faults: Faults | None, *, meanwhile: Callable[[Reactor], Any] | None = None, dies_after: float | None = None,
    **request: Any,
) -> JobFolder:  # fmt: skip
    """A job of 150 items whose parent is driven, and perhaps killed, by the caller."""
    storage = f"memory://recorded-{next(_numbers)}"
    settings = Settings(cancel_deadline_seconds=20)
    spec = make_spec(
        **{"deployment": DEPLOYMENT, "batch_size": 6, "max_in_flight": 4, "storage": storage, "job_id": "j",
           "kill_switch": None, "start_timeout_seconds": 30, **request}
    )  # fmt: skip

    async def whole() -> JobFolder:
        engine = SimulatedEngine(SimulatedBatches(a_fifth_fails, seconds_per_item=0.7), faults=faults)
        gateway = MemoryGateway(engine=engine)
        job = (await prepare(spec, as_source(range(150), storage=storage), gateway, settings=settings)).job
        reactor = Reactor(job, gateway, log=logger, io=Io(inline=True), recorder=Recorder(job))
        helper = asyncio.ensure_future(meanwhile(reactor)) if meanwhile else None
        running = asyncio.ensure_future(reactor.run())
        if dies_after is None:
            await running
        else:
            await asyncio.sleep(dies_after)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await take_over_on(engine, "j", storage, settings=settings)
        if helper is not None:
            helper.cancel()
        await engine.shut_down()
        return job.folder

    return run_virtually(whole())


JOBS: dict[str, Callable[[], JobFolder]] = {
    "quiet": quiet,
    "trip-cancel": lambda: trip("cancel"),
    "trip-drain": lambda: trip("drain"),
    "faults-1": lambda: faults(1),
    "faults-2": lambda: faults(2),
    "isolation": isolation,
    "outage": outage,
    "stop": stop,
    "controls": controls,
    "resumed": resumed,
}


def main() -> None:
    logging.disable(logging.CRITICAL)
    for name, make in JOBS.items():
        store = make().store
        for number, names in parents(store).items():
            path = FOLDER / (f"{name}.jsonl" if number == 1 else f"{name}-{number}.jsonl")
            path.unlink(missing_ok=True)
            print(f"{path.name}: {save(open_journal(store, names), path)} events, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
