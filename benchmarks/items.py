"""Items per second inside one flow run: plain functions with the ledger on, against `Task.map` of the same function.

Both in turns, as flow runs on the same real server. CPU is that of the flow's process and of the server, which goes on
working for some seconds after the flow ended.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.metering import Meter
from benchmarks.table import Row
from orchestrator.stack import Stack

ITEMS, MAPPED, ROUNDS = 50_000, 300, 2
RATE_RATIO, CPU_RATIO = 20, 0.01


@dataclass(frozen=True)
class Side:
    items: int
    wall: float
    process: float
    server: float

    def __add__(self, other: Side) -> Side:
        return Side(self.items + other.items, self.wall + other.wall, self.process + other.process,
                    self.server + other.server)  # fmt: skip

    @property
    def rate(self) -> float:
        return self.items / self.wall

    @property
    def cpu(self) -> float:
        return (self.process + self.server) / self.items


def run(stack: Stack, meter: Meter, which: str, n: int) -> Side:
    before = meter.read()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.inside", which, str(n)],
        cwd=Path(__file__).parent.parent, env=stack.environment, text=True, check=False, capture_output=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{which}: {done.stderr[-2000:]}")
    meter.settle()
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if said["done"] != n:
        raise RuntimeError(f"{which}: {said['done']} of {n} items were done")
    return Side(n, said["wall"], said["cpu"], (meter.read() - before).server)


def rows(stack: Stack, *, items: int = ITEMS, mapped: int = MAPPED, rounds: int = ROUNDS) -> list[Row]:
    meter = Meter(stack)
    sides: dict[str, Side] = {}
    for _ in range(rounds):
        for which, n in (("plain", mapped), ("ours", items)):
            side = run(stack, meter, which, n)
            sides[which] = sides[which] + side if which in sides else side
    mine, plain = sides["ours"], sides["plain"]
    rate, cpu = mine.rate / plain.rate, mine.cpu / plain.cpu
    return [
        Row(
            "items", f"items per second in one run ({items:,} items; {mapped} mapped)", mine.rate, plain.rate,
            "Task.map", rate, f"ratio >= {RATE_RATIO}", rate >= RATE_RATIO,
        ),
        Row(
            "items", "CPU ms per item, flow process and server", mine.cpu * 1000, plain.cpu * 1000, "Task.map", cpu,
            f"ratio <= {CPU_RATIO:g}", cpu <= CPU_RATIO,
        ),
        Row(
            "items", "CPU ms per item of the server alone", mine.server / mine.items * 1000,
            plain.server / plain.items * 1000, "Task.map",
        ),
    ]  # fmt: skip
