"""One job of 10,000 batches in a job folder on S3: objects, requests by whom, and the time to resume and to report.

The S3 server is a real one of the tests (moto, a process of its own on this machine), and so are the parent, the job
folder and every object a child run keeps there; Prefect and the child runs are simulated, in this process and in
virtual time. So requests and objects are what a job costs; seconds are those of a store that answers in a few
milliseconds, with one request at a time: multiply by what yours takes.

What a child run asks and leaves there is the same in a small job and in a large one; it is counted in a small one. In
the large ones child runs write their last word, which is what the parent reads, and nothing else.

The parent dies when half of the batches are settled, and another one takes over. Afterwards the report is taken away,
so that a third one has to settle the whole job from the folder alone.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.scale import peak_mb
from benchmarks.table import Row

BATCHES, PER_BATCH, AT_ONCE, SECONDS_PER_ITEM = 10_000, 10, 100, 0.4
WITH_LEDGERS = 100
"""Batches of the job whose child runs keep their whole ledger."""

READ = 500
"""Batches whose outcomes are read one by one at the end."""

_who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="parent")


@dataclass
class Requests:
    """What this process asked of the store, by who asked and how."""

    by: Counter[tuple[str, str]] = field(default_factory=Counter)

    def total(self, who: str) -> int:
        return sum(count for (asked_by, _), count in self.by.items() if asked_by == who)


@contextmanager
def counted() -> Iterator[Requests]:
    """Within: every HTTP request to an S3 server is counted, repetitions too."""
    from aiobotocore.httpsession import AIOHTTPSession

    found, send = Requests(), AIOHTTPSession.send

    async def counting(self: Any, request: Any) -> Any:
        found.by[_who.get(), request.method] += 1
        return await send(self, request)

    AIOHTTPSession.send = counting  # type: ignore[method-assign]
    try:
        yield found
    finally:
        AIOHTTPSession.send = send  # type: ignore[method-assign]


def measure(batches: int, storage: str, *, ledgers: bool) -> dict[str, Any]:
    """The whole story, in this process.

    Args:
        ledgers: Child runs keep their whole ledger, instead of writing their last word alone.
        storage: Where the job folder lies, e.g. `s3://jobs`.
    """
    from orchestrator.core.model import Counts, EndReason, Phase
    from orchestrator.engine.memory import SimulatedEngine
    from orchestrator.engine.simulated import SimulatedRun
    from orchestrator.engine.virtual import run as run_virtually
    from orchestrator.reactor import JobView, Reactor
    from orchestrator.store import EndRecord, JobFolder, job_folder_url, layout
    from orchestrator.store.jsonl import encode_json
    from orchestrator.testing import SimulatedBatches, simulate_on, take_over_on

    children = SimulatedBatches(lambda item: item, seconds_per_item=SECONDS_PER_ITEM, fence_seconds=5.0)
    job_id = f"bench-{time.time_ns()}"
    request = {
        "job_id": job_id,
        "storage": storage,
        "batch_size": PER_BATCH,
        "max_in_flight": max(2, min(AT_ONCE, batches // 10)),
    }
    facts: dict[str, Any] = {"batches": batches}

    folder = JobFolder(job_folder_url(storage, job_id))
    last_word = encode_json(EndRecord(EndReason.COMPLETED, Counts(succeeded=PER_BATCH)).to_json())

    async def child(run: SimulatedRun) -> Phase:
        _who.set("child")
        if ledgers:
            return await children(run)
        await asyncio.sleep(PER_BATCH * SECONDS_PER_ITEM)
        folder.store.put_new(layout.end(run.reference.batch, run.reference.attempt), last_word)
        return Phase.COMPLETED

    async def story(requests: Requests) -> None:
        engine, loop = SimulatedEngine(child), asyncio.get_running_loop()
        half: asyncio.Future[None] = loop.create_future()

        def look(view: JobView) -> None:
            if view.batches_settled >= batches // 2 and not half.done():
                half.set_result(None)

        began = time.monotonic()
        first = asyncio.ensure_future(simulate_on(engine, range(batches * PER_BATCH), on_progress=look, **request))
        await asyncio.wait([first, half], return_when=asyncio.FIRST_COMPLETED)
        assert not first.done(), first
        first.cancel()
        await asyncio.wait([first])

        async def again(name: str) -> Any:
            started, asked = time.monotonic(), requests.total("parent")

            def ready(_: Reactor) -> None:
                facts[f"{name}_seconds"] = time.monotonic() - started
                facts[f"{name}_requests"] = requests.total("parent") - asked

            return await take_over_on(engine, job_id, storage, on_reactor=ready)

        simulation = await again("resume")
        facts["job_seconds"] = time.monotonic() - began
        facts["parent_requests"], facts["child_requests"] = requests.total("parent"), requests.total("child")
        facts["by_method"] = {f"{who} {method}": count for (who, method), count in sorted(requests.by.items())}
        items = simulation.report.items
        facts["lost"] = items.total - items.succeeded
        objects = folder.store.list()
        facts["objects"], facts["bytes"] = len(objects), sum(entry.size for entry in objects)

        folder.store.delete(layout.REPORT)
        report = simulation.report
        started, asked = time.monotonic(), requests.total("parent")
        simulation = await again("settle")
        facts["report_seconds"] = time.monotonic() - started
        facts["report_requests"] = requests.total("parent") - asked
        assert simulation.report.items == report.items

        if not ledgers:
            return
        started, asked, read = time.monotonic(), requests.total("parent"), 0
        for _ in itertools.islice(folder.outcomes(), READ * PER_BATCH):
            read += 1
        facts["read"] = read / PER_BATCH
        facts["read_seconds"] = time.monotonic() - started
        facts["read_requests"] = requests.total("parent") - asked

    with counted() as requests:
        run_virtually(story(requests))
    return facts | {"peak_mb": peak_mb()}


def in_own_process(batches: int, *, ledgers: bool = False) -> dict[str, Any]:
    """On an S3 server of its own."""
    from tests.s3server import BUCKET, s3_server

    with s3_server():
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.object_store", str(batches), f"s3://{BUCKET}", str(int(ledgers))],
            cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows(batches: int = BATCHES, with_ledgers: int = WITH_LEDGERS) -> list[Row]:
    whole = in_own_process(with_ledgers, ledgers=True)
    small, large = in_own_process(batches // 10), in_own_process(batches)
    least, most = int(small["batches"]), int(large["batches"])
    lost = whole["lost"] + small["lost"] + large["lost"]

    def kept(what: str, name: str, over: str = "batches") -> Row:
        return Row("object_store", f"{with_ledgers:,} batches on S3, whole ledgers: {what}", whole[name] / whole[over])

    def line(what: str, name: str, wanted: float | None = None, each: bool = False) -> Row:
        a, b = (found[name] / (found["batches"] if each else 1) for found in (large, small))
        return Row(
            "object_store", f"{most:,} batches on S3: {what}", a, b, f"at {least:,}", a / b if b else None,
            wanted=f"ratio <= {wanted:g}" if wanted else "", holds=a <= wanted * b if wanted else None,
        )  # fmt: skip

    return [
        Row("object_store", f"{most:,} batches on S3: items lost", lost, wanted="0", holds=lost == 0),
        kept("objects per batch", "objects"),
        kept("requests of a child run of 4 s", "child_requests"),
        kept("requests to read the outcomes of a batch's items", "read_requests", "read"),
        line("objects per batch, child runs' last words alone", "objects", 1.1, each=True),
        line("requests of the parent per batch", "parent_requests", 1.1, each=True),
        line("seconds to resume with half of it done", "resume_seconds"),
        line("requests to resume with half of it done", "resume_requests"),
        line("seconds to settle and report all of it from the folder", "report_seconds"),
        line("requests to settle and report all of it from the folder", "report_requests"),
        line("largest memory, simulation included, MB", "peak_mb"),
    ]


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), sys.argv[2], ledgers=sys.argv[3] == "1")))
