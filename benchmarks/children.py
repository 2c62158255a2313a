"""What a child run that does nothing costs: ours against a plain loop of `run_deployment` and `wait_for_flow_run`.

On one real stack (server on SQLite, one process worker), in turns, so that both meet the same machine. The plain loop
runs a plain flow; ours runs a batch flow with its job folder, so that its children do more: they read their batch,
write outcomes, and look for stops.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import budget
from benchmarks.metering import Meter, Spent
from benchmarks.table import Row
from orchestrator.stack import Stack

CHILDREN, AT_ONCE, ROUNDS = 12, 3, 2


@dataclass(frozen=True)
class Side:
    """What one side spent over all rounds."""

    spent: Spent
    wall: float
    parent: float
    api_requests: float

    def __add__(self, other: Side) -> Side:
        return Side(
            self.spent + other.spent, self.wall + other.wall, self.parent + other.parent,
            self.api_requests + other.api_requests,
        )  # fmt: skip


def run(stack: Stack, meter: Meter, which: str, children: int, at_once: int) -> Side:
    """One job of one side."""
    before = meter.read()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.parents", which, str(children), str(at_once)],
        cwd=Path(__file__).parent.parent, env=stack.environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    meter.settle()
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if said["completed"] != children:
        raise RuntimeError(f"{which}: {said['completed']} of {children} child runs completed")
    return Side(meter.read() - before, said["wall"], said["cpu"], said.get("api_requests", 0))


def rows(stack: Stack, *, children: int = CHILDREN, at_once: int = AT_ONCE, rounds: int = ROUNDS) -> list[Row]:
    meter = Meter(stack)
    sides: dict[str, Side] = {}
    for _ in range(rounds):
        for which in ("plain", "ours"):
            side = run(stack, meter, which, children, at_once)
            sides[which] = sides[which] + side if which in sides else side
    mine, plain, n = sides["ours"], sides["plain"], children * rounds

    def line(measure: str, a: float, b: float, wanted: float | None = None) -> Row:
        return Row(
            "children", f"{measure}, per child run", a / n, b / n, "plain loop", a / b if b else None,
            wanted=f"ratio <= {wanted:g}" if wanted else "", holds=a <= wanted * b if wanted else None,
        )  # fmt: skip

    return [
        line("wall seconds", mine.wall, plain.wall, 1.25),
        line("CPU seconds, all processes", mine.spent.cpu + mine.parent, plain.spent.cpu + plain.parent, 1.25),
        line("CPU seconds of the server", mine.spent.server, plain.spent.server),
        line("CPU seconds of the worker", mine.spent.worker, plain.spent.worker),
        line("CPU seconds of the child's processes", mine.spent.children, plain.spent.children),
        line("CPU seconds of the parent", mine.parent, plain.parent),
        line("HTTP requests at the server, the worker's included", mine.spent.requests, plain.spent.requests),
        line("websockets at the server", mine.spent.sockets, plain.spent.sockets),
        budget.row("children", f"{rounds} jobs of {children} child runs", mine.api_requests, n, mine.wall),
    ]
