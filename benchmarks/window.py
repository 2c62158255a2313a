"""How full the window is kept: 40 batches, 8 in flight, simulated children in virtual time.

Two cores cannot start eight real children at once without the starts becoming the measurement, so children are
simulated here; the parent is the real one. No processor is involved in the result: the clock is virtual.
"""

from __future__ import annotations

import asyncio
import random

from benchmarks.table import Row
from orchestrator.core.model import Phase
from orchestrator.engine.gateway import Submission
from orchestrator.engine.memory import MemoryGateway
from orchestrator.engine.simulated import TYPICAL, Latencies, SimulatedRun
from orchestrator.engine.virtual import run as run_virtually
from orchestrator.testing import DEPLOYMENT, simulate

BATCHES, IN_FLIGHT, SECONDS = 40, 8, 2.0
REQUESTS_ONLY = Latencies(request=0.01, pickup=0.0, start=0.0, news=0.0)
"""API requests take 10 ms, children start at once and their end is heard at once: what is left is the parent's own."""


def ours(seconds: list[float], latencies: Latencies) -> float:
    """Virtual seconds of a job of one-item batches that take so long each."""
    simulation = simulate(
        lambda _: None, seconds, seconds_per_item=float, latencies=latencies, batch_size=1, max_in_flight=IN_FLIGHT
    )
    assert simulation.report.items.succeeded == len(seconds), simulation.report
    return simulation.seconds


def waves(seconds: list[float], latencies: Latencies) -> float:
    """The same by hand: create eight, wait for all of them, create the next eight."""

    async def child(run: SimulatedRun) -> Phase:
        await asyncio.sleep(run.parameters["seconds"])
        return Phase.COMPLETED

    async def loop() -> float:
        gateway = MemoryGateway(child, latencies=latencies)
        deployment = await gateway.find_deployment(DEPLOYMENT)

        async def one(index: int) -> None:
            submission = Submission(str(index), deployment, f"batch {index}", {"seconds": seconds[index]})
            await gateway.wait((await gateway.submit(submission)).id, 3600)

        for first in range(0, len(seconds), IN_FLIGHT):
            await asyncio.gather(*(one(i) for i in range(first, min(first + IN_FLIGHT, len(seconds)))))
        return asyncio.get_running_loop().time()

    return run_virtually(loop())


def rows() -> list[Row]:
    even = [SECONDS] * BATCHES
    chance = random.Random(1)
    uneven = [chance.uniform(0.2, 2 * SECONDS - 0.2) for _ in range(10 * BATCHES)]
    # What a batch takes over and above its work when nothing but Prefect is in the way: polls come half late.
    way = 4 * TYPICAL.request + TYPICAL.pickup / 2 + TYPICAL.start + TYPICAL.news
    found = []
    for name, seconds, latencies, extra, least in (
        ("40 x 2 s, requests of 10 ms", even, REQUESTS_ONLY, 0.0, 0.95),
        ("400 x 0.2-3.8 s, requests of 10 ms", uneven, REQUESTS_ONLY, 0.0, None),
        ("400 x 0.2-3.8 s, starts of 2 s and news of 0.3 s", uneven, TYPICAL, way, None),
    ):
        ideal = sum(s + extra for s in seconds) / IN_FLIGHT
        mine = ideal / ours(seconds, latencies)
        barrier = ideal / waves(seconds, latencies)
        found.append(
            Row(
                "window",
                f"{name}: ideal / actual time",
                mine,
                barrier,
                "waves of 8",
                mine / barrier,
                wanted="" if least is None else f"ours >= {least:g}",
                holds=None if least is None else mine >= least,
            )
        )
    return found
