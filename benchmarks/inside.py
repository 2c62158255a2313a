"""One flow run with many items, for `items` and `units`: `python -m benchmarks.inside WHICH N`.

Each side is a flow called in this process, a real flow run on the server. Prints wall and CPU seconds of the flow
run, imports and staging excluded.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from prefect import Flow, flow, task
from prefect.futures import wait

from benchmarks import unit_flows
from benchmarks.flows import noop, nothing
from orchestrator.core.model import BatchReference
from orchestrator.engine.gateway import Capacity
from orchestrator.flows.prepare import create_job
from orchestrator.flows.request import make_spec
from orchestrator.flows.target import Target
from orchestrator.settings import Settings
from orchestrator.store import JobFolder, as_source, job_folder_url


@flow(name="bench-mapped")
def mapped(n: int) -> int:
    """The same function as a task, mapped."""
    return len(wait(task(nothing).map(range(n))).done)


def plain(n: int) -> Callable[[], int]:
    return lambda: mapped(n)


def ours(n: int, batch_flow: Flow[..., Any] = noop) -> Callable[[], int]:
    """One batch of n items, staged; the run reads it by reference and keeps its ledger on local disk."""
    storage = tempfile.mkdtemp(prefix="orchestrator-bench-")
    folder = JobFolder(job_folder_url(storage, "job"))
    spec = make_spec(deployment=f"{batch_flow.name}/default", batch_size=n, job_id="job", storage=storage)
    source = as_source(range(n), storage=storage)
    record, _ = create_job(spec, source, folder, "job", Target({}, Capacity(), 1), Settings())
    reference = BatchReference.of(
        job="job", folder=folder.url, nonce=record.nonce, batches=1, attempt=0, batch=folder.batch(0)
    )

    def run() -> int:
        batch_flow(batch=reference)
        end = folder.read_end(0, 0)
        return end.counts.succeeded if end else 0

    return run


def main(which: str, n: str) -> None:
    units = {"process": unit_flows.process, "task": unit_flows.one_task, "group": unit_flows.group}
    sides = {"plain": plain, "ours": ours} | {name: partial(ours, batch_flow=unit) for name, unit in units.items()}
    run = sides[which](int(n))
    wall, cpu = time.monotonic(), time.process_time()
    done = run()
    # Items may have run in processes of ours, which have ended.
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = time.process_time() - cpu + spent.ru_utime + spent.ru_stime
    said = {"done": done, "wall": time.monotonic() - wall, "cpu": cpu}
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
