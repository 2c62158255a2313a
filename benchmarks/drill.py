"""The stop drill: one child run in every phase, a stop, and how long each takes to be over.

A stop, a trip and a cancel of the parent through the API take turns. The phases: Running; Pending (its process comes up
only after the stop); Scheduled, Late and AwaitingRetry (no worker); Paused by hand, its process alive; Running and
Cancelling with a worker that was killed, so that nobody passes a cancel on. Every item's result is the moment it began,
so the ledger itself says which began last.
"""

from __future__ import annotations

import asyncio
import contextvars
import datetime
import json
import logging
import os
import secrets
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.utilities.callables import parameter_schema

from benchmarks import flows
from benchmarks.table import Row
from orchestrator.core.model import ItemOutcome, StopCause, StopMode, StopRecord
from orchestrator.engine.registering import register
from orchestrator.flows.call import orchestrate_sync
from orchestrator.flows.parent import orchestrate_flow
from orchestrator.stack import Stack
from orchestrator.store import JobFolder, job_folder_url

TRIGGERS = ("stop", "trip", "cancel")
REPETITIONS = 20
ITEM_SECONDS, ITEMS = 0.1, 2_000
FENCE_SECONDS, DEADLINE_SECONDS = 2.0, 30.0
PATIENCE_SECONDS = 120.0
TERMINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

WORKED, IDLE, LOST, PARENTS = "drill-worked", "drill-idle", "drill-lost", "drill-parents"
POOLS = {
    "running": WORKED, "pending": WORKED, "paused": WORKED,
    "scheduled": IDLE, "late": IDLE, "awaiting_retry": IDLE,
    "orphaned": LOST, "cancelling": LOST,
}  # fmt: skip
REACHED = {
    "running": "RUNNING",
    "pending": "PENDING",
    "paused": "RUNNING",
    "orphaned": "RUNNING",
    "cancelling": "RUNNING",
}
BY_HAND = {
    "late": ("SCHEDULED", "Late"),
    "awaiting_retry": ("SCHEDULED", "AwaitingRetry"),
    "paused": ("PAUSED", "Paused"),
}


@dataclass(frozen=True)
class Drill:
    """One repetition; all in seconds after the stop.

    Args:
        settled: By phase, until the child's terminal state; None for a child that was named unconfirmed.
        last_start: Until the last item began; 0 when none did.
        reported: Until the report was there.
    """

    trigger: str
    settled: dict[str, float | None]
    last_start: float
    reported: float


class Ground:
    """Pools, deployments and the worker that all repetitions use.

    Args:
        stack: Used from within `stack.activated()`.
    """

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        for pool in (WORKED, IDLE, LOST, PARENTS):
            stack.create_pool(pool)
        self._workers = [stack.start_worker(pool=WORKED), stack.start_worker(pool=PARENTS)]
        self.door = stack.home / "drill-door"
        self._deploy()

    def close(self) -> None:
        for worker in self._workers:
            self.stack.stop_worker(worker)

    def _deploy(self) -> None:
        late = f'sh -c "while [ ! -e {self.door} ]; do sleep 0.1; done; exec {sys.executable} -m orchestrator.start"'
        here = {"directory": str(Path(__file__).parent)}
        with get_client(sync_client=True) as client:
            for phase, pool in POOLS.items():
                client.create_deployment(
                    flow_id=client.create_flow(flows.drilled),
                    name=phase,
                    work_pool_name=pool,
                    entrypoint="flows.py:drilled",
                    path=".",
                    pull_steps=[{"prefect.deployments.steps.set_working_directory": here}],
                    parameter_openapi_schema=parameter_schema(flows.drilled).model_dump_for_openapi(),
                    job_variables={"command": late} if phase == "pending" else {},
                )
        asyncio.run(register(orchestrate_flow, "drill", pool=PARENTS, version="drill", job_variables={}))

    def once(self, trigger: str) -> Drill:
        """Bring a child into every phase, stop the job that way, and see how long it takes."""
        self.door.unlink(missing_ok=True)
        worker = self.stack.start_worker(pool=LOST)
        try:
            run = _Repetition(self, trigger)
            run.begin()
            self.stack.kill_worker(worker)
            return run.stop()
        finally:
            if worker in self.stack.workers:
                self.stack.stop_worker(worker)


class _Repetition:
    def __init__(self, ground: Ground, trigger: str) -> None:
        self._ground, self._stack, self._trigger = ground, ground.stack, trigger
        self._job = f"drill-{secrets.token_hex(4)}"
        self._storage = str(self._stack.home / "jobs")
        self._gate = self._stack.home / f"{self._job}.gate"
        self._folder = JobFolder(job_folder_url(self._storage, self._job))
        self._parent: str | None = None
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start the job, and wait until there is a child in every phase."""
        if self._trigger == "cancel":
            self._begin_run()
        else:
            self._begin_here()
        _await(lambda: self._reached(REACHED), "a child in every phase")
        for phase, (type_, name) in BY_HAND.items():
            self._set(self._children()[phase]["id"], type_, name)
        self._seen_by_hand()

    def _request(self) -> dict[str, Any]:
        return {
            "batch_size": ITEMS, "max_in_flight": len(POOLS) + 1, "kill_switch": "failed >= 1",
            "parameters": {"gate": str(self._gate), "fails": self._trigger == "trip"},
        }  # fmt: skip

    def _items(self) -> list[dict[str, Any]]:
        what = [{"phase": phase, "seconds": ITEM_SECONDS} for phase in POOLS for _ in range(ITEMS)]
        what.append({"phase": "never", "seconds": ITEM_SECONDS})  # a batch that waits for its turn
        return what

    def _begin_here(self) -> None:
        def job() -> None:
            orchestrate_sync(
                {**{phase: f"bench-drill/{phase}" for phase in POOLS}, "*": "bench-drill/scheduled"}, self._items(),
                group_by="phase", job_id=self._job, storage=self._storage, on_failure="return", **self._request(),
            )  # fmt: skip

        context = contextvars.copy_context()
        self._thread = threading.Thread(target=lambda: context.run(job), daemon=True)
        self._thread.start()

    def _begin_run(self) -> None:
        found = self._stack.request("GET", "/deployments/name/orchestrate/drill")
        path = self._stack.home / f"{self._job}.jsonl"
        path.write_text("\n".join(json.dumps(item) for item in self._items()))
        parameters = {
            "deployment": {**{phase: f"bench-drill/{phase}" for phase in POOLS}, "*": "bench-drill/scheduled"},
            "items": {"kind": "file", "path": str(path)},
            "advanced": {"job_id": self._job, "storage": self._storage, "group_by": "phase"},
            **self._request(),
        }
        body = {"parameters": parameters, "state": {"type": "SCHEDULED", "name": "Scheduled"}}
        run = self._stack.request("POST", f"/deployments/{found['id']}/create_flow_run", body)
        self._parent = str(run["id"])

    def _children(self) -> dict[str, dict[str, Any]]:
        """The child runs by the phase they stand for."""
        wanted = {"flow_runs": {"tags": {"all_": [f"job:{self._job}"]}}, "limit": 200}
        runs = sorted(self._stack.request("POST", "/flow_runs/filter", wanted), key=lambda run: run["created"])
        return dict(zip(POOLS, runs, strict=False))

    def _reached(self, wanted: dict[str, str]) -> bool:
        if self._thread is not None and not self._thread.is_alive():
            raise RuntimeError("the job ended before its stop")
        if self._parent is not None:
            state = self._stack.request("GET", f"/flow_runs/{self._parent}")["state"]
            if state["type"] in TERMINAL:
                raise RuntimeError(f"the parent ended before its stop: {state['name']}: {state['message']}")
        children = self._children()
        if len(children) < len(POOLS) or any(children[p]["state_type"] != s for p, s in wanted.items()):
            return False
        begun = sum(bool(files.logs) for files in self._folder.attempts().values())
        return begun >= sum(state == "RUNNING" for state in wanted.values())

    def _set(self, run: str, type_: str, name: str) -> None:
        self._stack.request("POST", f"/flow_runs/{run}/set_state", {"state": {"type": type_, "name": name}})

    def _seen_by_hand(self) -> None:
        names = {phase: name for phase, (_, name) in BY_HAND.items()}
        _await(lambda: all(self._children()[p]["state_name"] == n for p, n in names.items()), "states set by hand")

    def stop(self) -> Drill:
        """Stop the job as the trigger says; what became of everything."""
        children = self._children()
        self._set(children["cancelling"]["id"], "CANCELLING", "Cancelling")
        stopped = time.time()
        if self._trigger == "trip":
            self._gate.touch()
            _await(lambda: self._folder.read_stop() is not None, "the stop")
            stopped = os.stat(Path(self._storage) / self._job / "stop.json").st_mtime
        elif self._trigger == "stop":
            # As `orchestrator stop` does.
            self._folder.request_stop(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "a drill", "drill"))
        else:
            assert self._parent is not None
            self._set(self._parent, "CANCELLING", "Cancelling")
        self._ground.door.touch()  # the slow process comes up now
        _await(lambda: self._folder.read_report() is not None, "the report")
        reported = os.stat(Path(self._storage) / self._job / "report.json").st_mtime - stopped
        if self._thread is not None:
            self._thread.join(PATIENCE_SECONDS)
        return Drill(self._trigger, self._settled(stopped), self._last_start(stopped), reported)

    def _settled(self, stopped: float) -> dict[str, float | None]:
        notes = " ".join((self._folder.read_report() or {}).get("notes", ()))
        found: dict[str, float | None] = {}
        for phase, run in self._children().items():
            if run["state_type"] in TERMINAL:
                found[phase] = max(0.0, _seconds(run["state"]["timestamp"]) - stopped)
            elif run["id"] in notes:
                found[phase] = None
            else:
                raise RuntimeError(f"the child in {phase} is {run['state_name']} and nobody says so")
        return found

    def _last_start(self, stopped: float) -> float:
        starts = [float(str(o.result)) for o in self._folder.outcomes({ItemOutcome.SUCCEEDED})]
        return max([s - stopped for s in starts] + [0.0])


def rows(stack: Stack, *, repetitions: int = REPETITIONS) -> list[Row]:
    """The drill as distributions."""
    logging.getLogger("prefect").setLevel(logging.CRITICAL)
    with stack.activated():
        ground = Ground(stack)
        try:
            found = []
            for n in range(repetitions):
                found.append(ground.once(TRIGGERS[n % len(TRIGGERS)]))
                print(f"  drill {n + 1} of {repetitions}: {found[-1]}", file=sys.stderr, flush=True)
        finally:
            ground.close()
    return table(found)


def table(found: list[Drill]) -> list[Row]:
    """Rows of any number of repetitions."""
    made = [_row("the last item's start", [d.last_start for d in found], FENCE_SECONDS + ITEM_SECONDS + 0.5)]
    for phase in POOLS:
        known = [s for d in found if (s := d.settled.get(phase)) is not None]
        if known:
            made.append(_row(f"the end of the child {phase.replace('_', ' ')}", known, 10.0))
    made.append(_row("the report", [d.reported for d in found], DEADLINE_SECONDS + 5))
    named = sum(s is None for d in found for s in d.settled.values())
    made.append(Row("drill", "children named unconfirmed instead", named, wanted="0", holds=named == 0))
    return made


def _row(what: str, values: list[float], most: float) -> Row:
    measure = f"seconds from stop to {what}, the longest of {len(values)}"
    middle = statistics.median(values)
    return Row("drill", measure, max(values), middle, "the median", None, f"<= {most:g}", max(values) <= most)


def _await(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} did not come within {PATIENCE_SECONDS:g} s")
        time.sleep(0.1)


def _seconds(text: str) -> float:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
