"""A worker whose child runs are simulated, on a real server: `python -m benchmarks.standin POOL`.

Two cores cannot start a hundred Python processes that import Prefect; a server does not know who asks. This process
polls the pool as a worker does, takes what is scheduled, and for each run asks the server what worker and child would
ask (`READS`), sets the same states, tells progress, and keeps the real ledger in the real job folder: its children are
those of `orchestrator.testing`, on a real clock. What is missing, plainly: the start of a process (a child runs some
0.2 s after it was seen), websockets of worker and child with the events they send, logs, hearing of a cancel.

An item is the seconds it takes. Ends at SIGTERM, or with who started it; prints what it did as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import signal
import sys
import time
from typing import Any

import httpx

from orchestrator.core.model import BatchReference, Phase, Progress
from orchestrator.engine import progress as progress_artifact
from orchestrator.testing import SimulatedBatches

POLL_SECONDS, HEARTBEAT_SECONDS, PATIENCE_SECONDS = 1.0, 30.0, 120.0
FIRST_NEWS_SECONDS, NEWS_SECONDS = 5.0, 10.0
AGAIN = frozenset({500, 502, 503, 504})

READS = (
    ("worker", ("deployments/{deployment_id}", "flows/{flow_id}", "work_pools/{pool}", "flow_runs/{id}")),
    ("child", ("flow_runs/{id}", "deployments/{deployment_id}", "flows/{flow_id}", "deployments/{deployment_id}",
               "flow_runs/{id}")),
)  # fmt: skip
"""What is read for one child run, by whom. With states and a PATCH 13 requests, where the access log of a server with
real ones shows about 33 of theirs: 4 reads of runs, 4 of deployments, 2 of flows, 4 states, 3 or 4 PATCH, 2 or 3 of
pool and queue, and 4 of logs, 7 of versions, tokens and storage, 4 to 6 websockets, which are not imitated."""


class StandIn:
    """The worker.

    Args:
        pool: Work pool that it polls.
        reads: Whether to ask what worker and child would ask; without, states and progress are all that is sent.
    """

    def __init__(self, pool: str, *, reads: bool = True) -> None:
        auth = os.environ.get("PREFECT_API_AUTH_STRING")
        user, _, password = (auth or "").partition(":")
        self._http = httpx.AsyncClient(
            base_url=os.environ["PREFECT_API_URL"] + "/", timeout=60.0, trust_env=False,
            auth=(user, password) if auth else None, limits=httpx.Limits(max_connections=32),
        )  # fmt: skip
        self._pool, self._reads = pool, dict(READS) if reads else {}
        self._children = SimulatedBatches(lambda item: item, seconds_per_item=float)
        self._running: dict[str, asyncio.Task[None]] = {}
        self.over = asyncio.Event()
        self.done: dict[str, float] = {"children": 0, "most": 0, "requests": 0, "again": 0, "failed": 0}

    async def work(self) -> None:
        """Poll and run until `over`, or until whoever started this process is gone."""
        starter = os.getppid()
        beat = asyncio.create_task(self._beat())
        async with self._http:
            while not self.over.is_set() and os.getppid() == starter:
                await self._poll()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.over.wait(), POLL_SECONDS)
            beat.cancel()
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(beat, *self._running.values(), return_exceptions=True)

    async def _beat(self) -> None:
        while True:
            await self._ask("POST", f"work_pools/{self._pool}/workers/heartbeat", {"name": "stand-in"})
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _poll(self) -> None:
        soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=10)
        found = await self._ask(
            "POST", f"work_pools/{self._pool}/get_scheduled_flow_runs", {"scheduled_before": soon.isoformat()}
        )
        for run in (entry["flow_run"] for entry in found or ()):
            if run["id"] not in self._running:
                task = asyncio.create_task(self._child(run))
                self._running[run["id"]] = task
                self.done["most"] = max(self.done["most"], len(self._running))

    async def _child(self, run: dict[str, Any]) -> None:
        try:
            await self._read("worker", run)
            if await self._propose(run, {"type": "PENDING", "name": "Pending"}) != "ACCEPT":
                return
            await self._ask("PATCH", f"flow_runs/{run['id']}", {"infrastructure_pid": "stand-in"})
            await self._read("child", run)
            if await self._propose(run, {"type": "RUNNING", "name": "Running"}) != "ACCEPT":
                return
            child = Child(self, run)
            phase = await self._children(child)  # type: ignore[arg-type]  # what it uses of a simulated run
            await child.tell_last()
            name = child.state_name or ("Completed" if phase is Phase.COMPLETED else phase.value.title())
            await self._propose(run, {"type": phase.value, "name": name, "message": child.message})
            self.done["children"] += 1
        except Exception as error:  # noqa: BLE001 - one child's trouble is its own, and is counted
            self.done["failed"] += 1
            print(f"{run['name']}: {type(error).__name__}: {error}", file=sys.stderr)
        finally:
            self._running.pop(run["id"], None)

    async def _read(self, who: str, run: dict[str, Any]) -> None:
        for path in self._reads.get(who, ()):
            await self._ask("GET", path.format(pool=self._pool, **run))

    async def _propose(self, run: dict[str, Any], state: dict[str, Any]) -> str:
        answer = await self._ask("POST", f"flow_runs/{run['id']}/set_state", {"state": state})
        return str(answer["status"])

    async def _ask(self, method: str, path: str, body: Any = None) -> Any:
        """As Prefect's client does: again after an answer that means "busy"."""
        end, pause = time.monotonic() + PATIENCE_SECONDS, 0.5
        while True:
            self.done["requests"] += 1
            try:
                answer = await self._http.request(method, path, json=body)
                if answer.status_code not in AGAIN:
                    break
            except httpx.TransportError:
                answer = None
            if time.monotonic() > end:
                raise RuntimeError(f"{method} {path}: no answer for {PATIENCE_SECONDS:g} s")
            self.done["again"] += 1
            await asyncio.sleep(pause)
            pause = min(5.0, 2 * pause)
        answer.raise_for_status()
        return answer.json() if answer.content else None


class Child:
    """What `SimulatedBatches` is given of a run."""

    def __init__(self, worker: StandIn, run: dict[str, Any]) -> None:
        self._worker, self._run = worker, run
        self.reference = BatchReference(**run["parameters"]["batch"])
        self.cancel_requested = asyncio.Event()
        self.message: str | None = None
        self.state_name: str | None = None
        self._began = self._told_at = time.monotonic()
        self._artifact: str | None = None
        self._told: Progress | None = None
        self._last: Progress | None = None
        self._telling: asyncio.Task[None] | None = None

    def report(self, progress: Progress) -> None:
        """News, as seldom as a real child tells it."""
        self._last = progress
        now, first = time.monotonic(), self._artifact is None
        due = now - self._began >= FIRST_NEWS_SECONDS if first else now - self._told_at >= NEWS_SECONDS
        if due and (self._telling is None or self._telling.done()):
            self._told_at = now
            self._telling = asyncio.create_task(self._tell(progress))

    async def tell_last(self) -> None:
        """The end's news, when anything was told before."""
        if self._telling is not None:
            await self._telling
        if self._artifact is not None and self._last is not None and self._last != self._told:
            await self._tell(self._last)

    async def _tell(self, progress: Progress) -> None:
        data, metadata = progress_artifact.encode(progress, self.reference.count, self.reference.job)
        body = {"type": "progress", "data": data, "metadata_": metadata, "flow_run_id": self._run["id"]}
        if self._artifact is None:
            made = await self._worker._ask("POST", "artifacts/", body)
            self._artifact = made["id"]
        else:
            await self._worker._ask("PATCH", f"artifacts/{self._artifact}", {"data": data, "metadata_": metadata})
        self._told = progress


async def main(pool: str, *, reads: bool) -> None:
    worker = StandIn(pool, reads=reads)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, worker.over.set)
    await worker.work()
    print(json.dumps(worker.done | {"cpu": time.process_time()}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], reads="--lean" not in sys.argv))
