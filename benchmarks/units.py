"""What one item costs by what it is: a plain call, a call in a process, a task run, a group of four, a child run.

Items do nothing. All but the last are one batch of a batch flow with its records on local disk, run in one process as
a flow run on a real server; the last is a job of one item per child run. In turns, on one stack. CPU is that of all
processes and of the server until it has written all events (see `items`, `children`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import children, items
from benchmarks.metering import Meter
from benchmarks.table import Row
from orchestrator.stack import Stack

ITEMS, CALLS, CHILDREN, AT_ONCE, ROUNDS = 1_000, 20_000, 12, 3, 2
WORDS = {
    "ours": "plain call", "process": "call in one of two processes", "task": "task run",
    "group": "task group of four", "child": f"child run, {AT_ONCE} at once",
}  # fmt: skip
Unit = tuple[str, int]
"""What an item is, and how many."""

UNITS: tuple[Unit, ...] = (
    # With few calls, what is seen is the flow run, the start of the processes and the server's idle work.
    ("ours", ITEMS), ("ours", CALLS), ("process", ITEMS), ("process", CALLS), ("task", ITEMS), ("group", ITEMS),
    ("child", CHILDREN),
)  # fmt: skip
GROUP_RATIO = 5.0
"""A group of four tasks, in task runs, at most."""


@dataclass(frozen=True)
class Cost:
    """So many items took so many seconds, and so many of CPU."""

    items: int
    wall: float
    cpu: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.items + other.items, self.wall + other.wall, self.cpu + other.cpu)


def measure(stack: Stack, meter: Meter, which: str, n: int) -> Cost:
    if which == "child":
        done = children.run(stack, meter, "ours", n, AT_ONCE)
        return Cost(n, done.wall, done.spent.cpu + done.parent)
    side = items.run(stack, meter, which, n)
    return Cost(n, side.wall, side.process + side.server)


def rows(stack: Stack, *, units: Sequence[Unit] = UNITS, rounds: int = ROUNDS) -> list[Row]:
    """The table's rows; there must be task runs among the units, which the others are held against."""
    meter, found = Meter(stack), dict[Unit, Cost]()
    for _ in range(rounds):
        for unit in units:
            cost = measure(stack, meter, *unit)
            found[unit] = found[unit] + cost if unit in found else cost
    base = next(cost for (which, _), cost in found.items() if which == "task")
    made = []
    for (which, n), cost in found.items():
        name = f"{WORDS[which]} ({n:,} items)"
        rate, per = cost.items / cost.wall, cost.cpu / cost.items * 1000
        base_rate, base_per = base.items / base.wall, base.cpu / base.items * 1000
        other = {"other_is": "task run"}
        claim = {"wanted": f"ratio <= {GROUP_RATIO:g}", "holds": per / base_per <= GROUP_RATIO}
        made.append(Row("units", f"{name}: items per second", rate, base_rate, **other, ratio=rate / base_rate))
        made.append(
            Row("units", f"{name}: CPU ms per item, all processes", per, base_per, **other, ratio=per / base_per,
                **(claim if which == "group" else {}))
        )  # fmt: skip
    return made
