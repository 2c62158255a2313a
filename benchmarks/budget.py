"""What a job costs Prefect's API: requests of the parent per attempt and per minute (guarantee G7).

Virtual time and a simulated Prefect, counted by the simulated gateway as the real one counts: requests, pages of 200
ids (100 for progress), upgrades to websockets. The row `children` has the same number for a short job on a real server.
"""

from __future__ import annotations

from benchmarks.table import Row
from orchestrator.testing import Simulation, simulate

PER_ATTEMPT, PER_MINUTE = 6, 60


def allowed(attempts: float, seconds: float) -> float:
    return PER_ATTEMPT * attempts + PER_MINUTE * seconds / 60


def row(benchmark: str, name: str, requests: float, attempts: float, seconds: float) -> Row:
    most = allowed(attempts, seconds)
    return Row(
        benchmark, f"{name}: parent's requests", requests, most, "allowed", requests / most,
        wanted=f"<= {PER_ATTEMPT} per attempt + {PER_MINUTE} per minute", holds=requests <= most,
    )  # fmt: skip


def job(batches: int, in_flight: int, items: int, seconds_per_item: float) -> Simulation:
    return simulate(
        lambda _: None, range(batches * items), seconds_per_item=seconds_per_item,
        batch_size=items, max_in_flight=in_flight,
    )  # fmt: skip


def rows() -> list[Row]:
    found = []
    jobs = ((40, 8, 60, 1.0), (400, 100, 60, 1.0), (4, 4, 120, 15.0), (400, 400, 60, 120.0))
    for batches, in_flight, items, seconds in jobs:
        simulation = job(batches, in_flight, items, seconds)
        minutes = simulation.seconds / 60
        name = (
            f"{batches} batches of {items * seconds / 60:g} min, {in_flight} in flight ({minutes:.0f} min, simulated)"
        )
        found.append(row("requests", name, simulation.report.api_requests, batches, simulation.seconds))
    return found
