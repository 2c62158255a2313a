"""The parent alone, at 1,000 to 50,000 batches: does a batch cost the same in a large job, and what does it hold?

The parent, its machine, its job folder (on local disk) and its report are the real ones; Prefect and the children are
simulated in the same process and in virtual time, so that what is measured includes the simulation. A child writes
the last word that the parent reads, and nothing else. Each size runs in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.table import Row

ITEMS_PER_BATCH, IN_FLIGHT, SECONDS = 10, 100, 30.0
SIZES = (1_000, 10_000, 50_000)
MEMORY_MB = 300


def measure(batches: int) -> dict[str, float]:
    """CPU seconds and peak memory (MB) of a job of so many batches, run in this process."""
    from orchestrator.core.model import Counts, EndReason, Phase
    from orchestrator.engine.memory import SimulatedEngine
    from orchestrator.engine.simulated import SimulatedRun
    from orchestrator.engine.virtual import run as run_virtually
    from orchestrator.store import EndRecord, layout, open_store
    from orchestrator.store.jsonl import encode_json
    from orchestrator.testing import simulate_on

    before = time.process_time()
    base = peak_mb()
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-", dir=in_memory()) as folder:
        store = open_store(f"{folder}/job")
        last_word = encode_json(EndRecord(EndReason.COMPLETED, Counts(succeeded=ITEMS_PER_BATCH)).to_json())
        in_child = 0.0

        async def child(run: SimulatedRun) -> Phase:
            nonlocal in_child
            await asyncio.sleep(SECONDS)
            began = time.process_time()
            store.put_new(layout.end(run.parameters["batch"]["batch"], 0), last_word)
            in_child += time.process_time() - began
            return Phase.COMPLETED

        async def job() -> tuple[float, int]:
            simulation = await simulate_on(
                SimulatedEngine(child), range(batches * ITEMS_PER_BATCH), job_id="job", storage=folder,
                batch_size=ITEMS_PER_BATCH, max_in_flight=IN_FLIGHT,
            )  # fmt: skip
            assert simulation.report.items.succeeded == batches * ITEMS_PER_BATCH, simulation.report
            return simulation.seconds, simulation.report.api_requests

        seconds, requests = run_virtually(job())
        spent = time.process_time() - before - in_child
    return {
        "batches": batches, "cpu": spent, "peak_mb": peak_mb(), "base_mb": base,
        "virtual_seconds": seconds, "requests": requests,
    }  # fmt: skip


def peak_mb() -> float:
    """Largest resident memory of this process so far.

    Where Linux tells it per program: `ru_maxrss` goes on counting what the process that started this one had.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024  # type: ignore[index]  # always there
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def in_memory() -> str | None:
    """A folder of the file system that lives in memory, where there is one: the disk is not what is measured."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def in_own_process(batches: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale", str(batches)],
        cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows(sizes: tuple[int, ...] = SIZES) -> list[Row]:
    results = [in_own_process(size) for size in sizes]
    first = results[0]["cpu"] / results[0]["batches"] * 1000
    found = []
    for result in results:
        size = int(result["batches"])
        each = result["cpu"] / size * 1000
        last = size == sizes[-1]
        found.append(
            Row(
                "scale",
                f"parent, {size:,} batches: CPU ms per batch",
                each,
                first,
                f"at {sizes[0]:,}",
                each / first,
                wanted="ratio <= 1.25" if last else "",
                holds=each / first <= 1.25 if last else None,
            )
        )
        found.append(
            Row(
                "scale",
                f"parent, {size:,} batches: peak memory, MB",
                result["peak_mb"],
                result["base_mb"],
                "imports alone",
                wanted=f"< {MEMORY_MB}",
                holds=result["peak_mb"] < MEMORY_MB,
            )
        )
    return found


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
