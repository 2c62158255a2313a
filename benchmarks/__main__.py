"""`python -m benchmarks [NAME...]`: run the usual measurements, or the named ones, and print one table."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks import (
    batch_task,
    budget,
    children,
    containers,
    databases,
    drill,
    images,
    items,
    object_store,
    postgres_scale,
    scale,
    stopping,
    units,
    videos,
    window,
)
from benchmarks.metering import bench_stack
from benchmarks.table import Row, machine, markdown
from orchestrator.stack import Stack

SIMULATED: dict[str, Callable[[], list[Row]]] = {"window": window.rows, "requests": budget.rows, "scale": scale.rows}
LONG: dict[str, Callable[[], list[Row]]] = {
    "databases": databases.rows, "postgres_scale": postgres_scale.rows, "object_store": object_store.rows,
    "containers": containers.rows,
}  # fmt: skip
"""With servers of their own and for minutes, or with an engine: run by name."""
REAL: dict[str, Callable[[Stack], list[Row]]] = {
    "children": children.rows, "items": items.rows, "stopping": stopping.rows,
    "units": units.rows, "batch_task": batch_task.rows,
    "drill": drill.rows, "images": images.rows, "videos": videos.rows,
}  # fmt: skip


def main(names: list[str]) -> int:
    known = [*SIMULATED, *REAL, *LONG]
    if unknown := [name for name in names if name not in known]:
        print(f"no measurement named {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    wanted, found, failed = names or [*SIMULATED, *REAL], list[Row](), list[str]()
    began = time.monotonic()
    with ExitStack() as stacks:
        stack: Stack | None = None
        for name in wanted:
            print(f"[{time.monotonic() - began:4.0f} s] {name} ...", file=sys.stderr, flush=True)
            try:
                if name in SIMULATED | LONG:
                    found += (SIMULATED | LONG)[name]()
                    continue
                if stack is None:
                    stack = stacks.enter_context(bench_stack())
                found += REAL[name](stack)
            except Exception:  # noqa: BLE001 - what the others measured is not lost with it
                traceback.print_exc()
                failed.append(name)
    print(f"{machine()}; {time.monotonic() - began:.0f} s in all.\n\n{markdown(found)}")
    if failed:
        print(f"could not be measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
