"""What the tests of whole jobs share: deployments of the test flows, and an account of a job from outside.

`Watched` reads what three witnesses say: the job's folder, the server, and the items themselves (`job_flows.note`).
"""

from __future__ import annotations

import asyncio
import contextvars
import datetime
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.utilities.callables import parameter_schema

from orchestrator import JobFolder, Report, Verdict
from orchestrator.engine.registering import register
from orchestrator.flows.parent import orchestrate_flow
from orchestrator.stack import Stack
from orchestrator.store import OutcomeRecord, job_folder_url
from tests.integration import job_flows
from tests.prefect_stack import POOL
from tests.support import eventually

T = TypeVar("T")
HERE = Path(__file__).parent
MARKS = [
    # Prefect itself leaves a socket open after an async flow, an empty one included (3.8.8).
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]
TERMINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def deploy(flow: Flow[..., Any], function: str, name: str, *, pool: str = POOL, **options: Any) -> str:
    """Register a flow of `job_flows` the way `prefect deploy` does for a local project; its full name."""
    with get_client(sync_client=True) as client:
        client.create_deployment(
            flow_id=client.create_flow(flow),
            name=name,
            work_pool_name=pool,
            entrypoint=f"job_flows.py:{function}",
            path=".",
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(HERE)}}],
            parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
            enforce_parameter_schema=True,
            **options,
        )
    return f"{flow.name}/{name}"


def deploy_work(name: str = "default", **options: Any) -> str:
    return deploy(job_flows.work, "work", name, **options)


def items(count: int, **what: Any) -> list[dict[str, Any]]:
    """So many items that all do the same."""
    return [{"n": n, **what} for n in range(count)]


class Watched:
    """One job as three witnesses see it.

    Args:
        home: A folder of the test: job folders lie in `home/jobs`, the items' account in `home/trace`.
    """

    def __init__(self, stack: Stack, home: Path, job: str) -> None:
        self.stack, self.job, self.home = stack, job, home
        self.storage, self.trace_folder = str(home / "jobs"), home / "trace"
        self.trace_folder.mkdir(exist_ok=True)

    @property
    def parameters(self) -> dict[str, Any]:
        """The batch flow's parameters that make items write their account."""
        return {"trace": str(self.trace_folder)}

    @property
    def request(self) -> dict[str, Any]:
        """What `orchestrate` needs besides deployment and items."""
        return {"job_id": self.job, "storage": self.storage, "parameters": self.parameters}

    @property
    def advanced(self) -> dict[str, Any]:
        """The same, as the parent deployment takes it."""
        return {"job_id": self.job, "storage": self.storage}

    # ------------------------------------------------------------------ the items' own account

    def trace(self, event: str | None = None) -> list[dict[str, Any]]:
        path = self.trace_folder / job_flows.TRACE
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if event in (None, line["event"])]

    def started(self) -> list[Any]:
        return [line["index"] for line in self.trace("start")]

    def wait_until_started(self, count: int, deadline_seconds: float = 60) -> None:
        eventually(lambda: len(self.trace("start")) >= count, deadline_seconds, f"{count} items running")

    def last_start(self) -> float:
        """Epoch seconds; 0 when none started."""
        return max((line["at"] for line in self.trace("start")), default=0.0)

    def processes(self) -> list[int]:
        """Processes that worked on items and are still there."""
        alive = []
        for pid, first in {line["pid"]: line["at"] for line in reversed(self.trace())}.items():
            try:
                process = psutil.Process(pid)
                if process.create_time() < first + 1 and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(pid)
            except psutil.NoSuchProcess:
                continue
        return alive

    # ------------------------------------------------------------------ the folder

    @property
    def folder(self) -> JobFolder:
        return JobFolder(job_folder_url(self.storage, self.job))

    def outcomes(self) -> list[OutcomeRecord]:
        return list(self.folder.outcomes())

    def outcome_words(self) -> list[str]:
        return [o.outcome.value for o in self.outcomes()]

    def stopped_at(self) -> float:
        """Epoch seconds at which the stop was written."""
        return self.folder_written("stop.json")

    def folder_written(self, name: str) -> float:
        """Epoch seconds at which that object of the job's folder was written last."""
        return os.stat(Path(self.storage) / self.job / name).st_mtime

    # ------------------------------------------------------------------ the server

    def children(self) -> list[dict[str, Any]]:
        """The job's child runs, in the order in which they were created."""
        wanted = {"flow_runs": {"tags": {"all_": [f"job:{self.job}"]}}, "limit": 200}
        return sorted(self.stack.request("POST", "/flow_runs/filter", wanted), key=lambda run: run["created"])

    def states(self, run_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.stack.request("GET", f"/flow_run_states/?flow_run_id={run_id}")
        return found

    def most_at_once(self) -> int:
        """Most children that were unsettled at the same time, from the server's records of their states."""
        changes: list[tuple[float, int]] = []
        for run in self.children():
            ends = [seconds(s["timestamp"]) for s in self.states(run["id"]) if s["type"] in TERMINAL]
            changes.append((seconds(run["created"]), 1))
            changes += [(min(ends), -1)] if ends else []
        most = now = 0
        for _, change in sorted(changes):
            now += change
            most = max(most, now)
        return most


def seconds(text: str) -> float:
    """Prefect's time text as epoch seconds."""
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def check_cut_off(watched: Watched, report: Report, deployment: str) -> None:
    """What must hold of a job that ended because no child run reached its folder.

    Nothing was done and nothing is left, no batch was tried a third time, and the reason has both sides' view.
    """
    assert (report.verdict, report.items.succeeded) == (Verdict.FAILED, 0), report
    children = watched.children()
    assert [c["state_type"] for c in children if c["state_type"] not in TERMINAL] == []
    again = [c["name"] for c in children if " again " in c["name"]]
    assert again, "one attempt alone decided"
    assert len({name.partition(" again ")[0] for name in again}) == len(again), "a batch was tried a third time"
    assert f"child runs of {deployment} cannot work: cannot reach the job folder" in report.reason
    assert "This parent run (" in report.reason
    assert "reads and writes" in report.reason
    assert watched.trace() == []


def check(watched: Watched, report: Report, *, max_in_flight: int | None = None) -> None:
    """What must hold of every job that is over, whatever happened to it.

    The four counts add up to the input; folder and report agree item by item; no child and no process of it is left;
    never were more children unsettled than allowed; nothing was created after the stop.
    """
    n = report.items
    assert n.succeeded + n.failed + n.unknown + n.not_started == n.total
    b = report.batches
    assert b.completed + b.failed + b.crashed + b.cancelled + b.not_submitted + b.unconfirmed == b.total
    outcomes = watched.outcomes()
    assert [o.index for o in outcomes] == list(range(n.total))
    words = Counter(o.outcome.value for o in outcomes)
    assert words == +Counter(succeeded=n.succeeded, failed=n.failed, unknown=n.unknown, not_started=n.not_started)
    assert watched.folder.read_report() == json.loads(json.dumps(report.to_json()))
    # What the items themselves say.
    began = set(watched.started())
    for outcome in outcomes:
        if outcome.outcome.value in ("succeeded", "failed"):
            assert outcome.index in began, (
                f"item {outcome.index} is said to have {outcome.outcome.value} and never began"
            )
        if outcome.outcome.value == "not_started":
            assert outcome.index not in began, f"item {outcome.index} is said not to have started, and it did"
    left = [(run["name"], run["state_type"]) for run in watched.children() if run["state_type"] not in TERMINAL]
    assert len(left) <= b.unconfirmed, f"still there: {left}"
    eventually(lambda: not watched.processes(), 20, "the end of all processes of the job")
    if max_in_flight is not None:
        assert watched.most_at_once() <= max_in_flight
        assert report.max_in_flight_seen <= max_in_flight


def check_runs(watched: Watched, allowed: Sequence[tuple[int, int]], twice: Collection[int] = ()) -> None:
    """What must hold of the child runs of a job whose parents died.

    No two of them for one attempt of a batch; none that nobody asked for; all are over; no item was begun twice unless
    it was in progress when its run died.

    Args:
        allowed: (batch, attempt) of each run there may be.
        twice: Items that may have been begun twice.
    """
    runs = watched.children()
    keys = [tuple(int(n) for n in run["idempotency_key"].split("/")[-2:]) for run in runs]
    assert len(set(keys)) == len(keys), f"two runs for one attempt: {keys}"
    assert set(keys) <= set(allowed), f"runs that nobody asked for: {set(keys) - set(allowed)}"
    left = [(run["name"], run["state_type"]) for run in runs if run["state_type"] not in TERMINAL]
    assert not left, f"still there: {left}"
    begun = Counter(watched.started())
    again = {index for index, count in begun.items() if count > 1}
    assert again <= set(twice), f"items that were begun twice: {again}"


def start(stack: Stack, parameters: dict[str, Any], *, deployment: str = "orchestrate/default") -> str:
    """Start a run of the parent deployment, as the UI's button does; its id."""
    flow_name, _, name = deployment.partition("/")
    found = stack.request("GET", f"/deployments/name/{flow_name}/{name}")
    run = stack.request(
        "POST",
        f"/deployments/{found['id']}/create_flow_run",
        {"parameters": parameters, "state": {"type": "SCHEDULED", "name": "Scheduled"}},
    )
    return str(run["id"])


def read_run(stack: Stack, run_id: str) -> dict[str, Any]:
    run: dict[str, Any] = stack.request("GET", f"/flow_runs/{run_id}")
    return run


def await_end(stack: Stack, run_id: str, deadline_seconds: float = 90) -> dict[str, Any]:
    """The run, once it is in a terminal state."""

    def ended() -> dict[str, Any] | None:
        run = read_run(stack, run_id)
        return run if run["state_type"] in TERMINAL else None

    return eventually(ended, deadline_seconds, f"the end of run {run_id}")  # type: ignore[return-value]


def set_state(stack: Stack, run_id: str, type_: str, name: str, *, force: bool = False) -> dict[str, Any]:
    """As the UI's buttons do."""
    answer: dict[str, Any] = stack.request(
        "POST", f"/flow_runs/{run_id}/set_state", {"state": {"type": type_, "name": name}, "force": force}
    )
    return answer


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long something took: shown with `-s`, and in the output of a test that fails."""
    began = time.monotonic()
    try:
        yield
    finally:
        print(f"{what}: {time.monotonic() - began:.1f} s")


def in_background(function: Callable[[], T]) -> Future[T]:
    """Run in a thread, as a client of the same stack; the test looks on and steps in meanwhile."""
    future: Future[T] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            future.set_result(context.run(function))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def deploy_parent(name: str = "it", *, pool: str = POOL, **env: str) -> str:
    """Register the parent as `orchestrator deploy` does; its items get two seconds to end after a stop."""
    times = {"ORCHESTRATOR_FENCE_SECONDS": "1", "ORCHESTRATOR_ITEM_GRACE_SECONDS": "2", **env}
    asyncio.run(register(orchestrate_flow, name, pool=pool, version="test", job_variables={"env": times}))
    return f"{orchestrate_flow.name}/{name}"
