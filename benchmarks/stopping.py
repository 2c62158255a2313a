"""How fast a stop is: from its being written to the start of the last item, and to the end of everything.

Real child runs on a real server, in the middle of many short items. The stop is what `orchestrator stop` writes. Each
item's result is the moment it started, so the ledger itself says which one started last. Children look for a stop
every 2 s on local storage, so 2 s and an item is what is promised.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time

from benchmarks.table import Row, distribution
from orchestrator.core.model import ItemOutcome, StopCause, StopMode, StopRecord
from orchestrator.core.report import Report
from orchestrator.flows.call import orchestrate_sync
from orchestrator.reactor import JobView
from orchestrator.stack import Stack
from orchestrator.store import JobFolder, job_folder_url

CHILDREN, ITEM_SECONDS, ITEMS, REPETITIONS = 3, 0.1, 1000, 5
FENCE_SECONDS = 2.0


def once(storage: str, children: int) -> tuple[float, float]:
    """Seconds from a stop to the last item's start, and to the report."""
    job_id = f"stop-{secrets.token_hex(4)}"
    folder = JobFolder(job_folder_url(storage, job_id))
    reports: list[Report] = []
    views: list[JobView] = []

    def job() -> None:
        reports.append(
            orchestrate_sync(
                "bench-short/default", [ITEM_SECONDS] * (ITEMS * children), batch_size=ITEMS, max_in_flight=children,
                job_id=job_id, storage=storage, on_failure="return", on_progress=views.append,
            )
        )  # fmt: skip

    parent = threading.Thread(target=job, daemon=True)
    parent.start()
    end = time.monotonic() + 120
    # Each in the middle of its items, and the parent knows that it runs: what is not known to run is cancelled at once.
    while not (views and views[-1].in_flight == {"Running": children} and _begun(folder) == children):
        if time.monotonic() > end or not parent.is_alive():
            raise RuntimeError("the child runs did not start")
        time.sleep(0.1)
    time.sleep(secrets.randbelow(2000) / 1000)  # the children look every two seconds: not always at the same moment
    stopped = time.time()
    folder.request_stop(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "measuring", "benchmark"))
    parent.join()
    settled = time.time() - stopped
    (report,) = reports
    if report.items.unknown:
        raise RuntimeError(f"items were interrupted although they take {ITEM_SECONDS:g} s: {report}")
    starts = [float(str(o.result)) for o in folder.outcomes({ItemOutcome.SUCCEEDED})]
    return max(max(starts) - stopped, 0.0), settled


def _begun(folder: JobFolder) -> int:
    return sum(bool(files.logs) for files in folder.attempts().values())


def rows(stack: Stack, *, children: int = CHILDREN, repetitions: int = REPETITIONS) -> list[Row]:
    logging.getLogger("prefect.orchestrator").setLevel(logging.CRITICAL)  # the table is what is to be read
    with stack.activated():
        found = [once(str(stack.home / "jobs"), children) for _ in range(repetitions)]
    name = f"{children} child runs, items of {ITEM_SECONDS:g} s; seconds from stop to"
    return [
        *distribution(
            "stopping", f"{name} the last item's start", [a for a, _ in found], most=FENCE_SECONDS + ITEM_SECONDS + 0.5
        ),
        *distribution("stopping", f"{name} all settled and reported", [b for _, b in found], most=30.0),
    ]
