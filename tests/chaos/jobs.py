"""Jobs that meet the faults, one after another per lane, and the operator who resumes those whose parent died."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from orchestrator.stack import StackError
from orchestrator.store import JobFolder, job_folder_url
from tests.chaos.evidence import Evidence, RunHistory, read_attempts, read_executions, read_runs, unsettled
from tests.chaos.world import BATCHES, FENCE_SECONDS, GRACE_SECONDS, PARENT, World

Kind = Literal["process", "deployment"]
NEVER = "failed > 1000000"  # what a kill switch does is tested elsewhere
RETRIES = 8  # attempts are what faults cost: a job of a campaign may lose many
START_TIMEOUT_SECONDS = 120
RESUME_PAUSE_SECONDS = 5.0
OVER = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
# On a machine that is loaded by others, how much later than asked for a thread may come to look at the folder.
LATE_SECONDS = 5.0


@dataclass(frozen=True)
class Size:
    """Of one job."""

    items: int = 40
    batch_size: int = 4
    max_in_flight: int = 2
    shortest: float = 0.5
    longest: float = 2.5
    failing: float = 0.08


@dataclass
class ChaosJob:
    """One job and its parent. `tend` it until it `is_over`.

    Args:
        kind: How the first parent runs; whoever resumes it is a plain process, or Prefect's retry.
    """

    world: World
    id: str
    kind: Kind
    size: Size
    chance: random.Random
    deadline_seconds: float
    began: float = field(default_factory=time.time)
    ended: float | None = None
    resumed: int = 0
    complaints: list[str] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None
    _run: str | None = None
    _shot: bool = False  # the nemesis killed the parent
    _next_look: float = 0.0
    _log_begin: int = 0
    _crashed_at: float | None = None

    # ------------------------------------------------------------------ what it is

    @property
    def storage(self) -> Path:
        return self.world.disk.folder

    @property
    def folder(self) -> Path:
        return self.storage / self.id

    @property
    def trace(self) -> Path:
        return self.world.home / "traces" / self.id

    @property
    def log(self) -> Path:
        return self.world.home / "traces" / f"{self.id}.log"

    @property
    def is_over(self) -> bool:
        return self.ended is not None

    def begin(self) -> None:
        self.trace.mkdir(parents=True)
        self.items = [
            {
                "n": n,
                "seconds": round(self.chance.uniform(self.size.shortest, self.size.longest), 2),
                "fail": self.chance.random() < self.size.failing,
            }
            for n in range(self.size.items)
        ]
        self._write_request()
        if self.kind == "process":
            self._start_process()

    @property
    def _request(self) -> Path:
        return self.trace / "request.json"

    def _write_request(self) -> None:
        self._more = {
            "job_id": self.id, "storage": str(self.storage), "batch_retries": RETRIES, "fail_if": NEVER,
            "start_timeout_seconds": START_TIMEOUT_SECONDS,
        }  # fmt: skip
        self._form = {
            "deployment": BATCHES, "batch_size": self.size.batch_size, "max_in_flight": self.size.max_in_flight,
            "parameters": {"trace": str(self.trace)}, "kill_switch": NEVER,
        }  # fmt: skip
        request = {**self._form, **self._more, "items": self.items}
        self._request.write_text(json.dumps(request))

    # ------------------------------------------------------------------ the operator

    def tend(self) -> None:
        """Notice the end, or a parent that is no more, and do what an operator would; a few times a second."""
        if self.is_over or time.time() < self._next_look:
            return
        self._next_look = time.time() + 0.5
        if time.time() - self.began > self.deadline_seconds:
            self.complaints.append(f"job {self.id} hangs: not over after {self.deadline_seconds:.0f} s")
            self._end()
            return
        if self._process is not None:
            self._tend_process(self._process)
        elif self._run is None:
            self._start_run()
        else:
            self._tend_run(self._run)

    def _tend_process(self, process: subprocess.Popen[bytes]) -> None:
        code = process.poll()
        if code is None:
            return
        if (self.folder / "report.json").exists() and code in (0, 1):
            self._end()
            return
        # Before it takes up its work a parent may well say that Prefect cannot be reached (3), or storage not used (2).
        if not self._shot and (code not in (2, 3) or self._was_at_work()):
            self.complaints.append(f"the parent of {self.id} ended by itself with {code}")
        self._resume(f"the parent ended with {code}")

    def _was_at_work(self) -> bool:
        """Whether the parent that is over had begun: a resumed one says so only after it found its deployment."""
        data = self.log.read_bytes() if self.log.exists() else b""
        return f"Job {self.id}: {self.size.items} items".encode() in data[self._log_begin :]

    def _start_process(self, *more: str) -> None:
        self._log_begin = self.log.stat().st_size if self.log.exists() else 0
        self._process = self.world.start_parent([str(self._request), *more], self.log)

    def _start_run(self) -> None:
        form = {
            **self._form,
            "items": {"kind": "inline", "items": self.items},
            "advanced": self._more,
        }
        flow, _, name = PARENT.partition("/")
        try:
            found = self.world.ask("GET", f"/deployments/name/{flow}/{name}")
            if found is None:
                return
            wanted = {"parameters": form, "state": {"type": "SCHEDULED"}, "idempotency_key": f"parent-{self.id}"}
            run = self.world.ask("POST", f"/deployments/{found['id']}/create_flow_run", wanted)
        except StackError as e:
            if "HTTP 4" in str(e):
                self.complaints.append(f"the parent run of {self.id} was refused: {e}")
                self._end()
            return  # the server is away: asked again
        if run is not None:
            self._run = str(run["id"])

    def _tend_run(self, run_id: str) -> None:
        if (self.folder / "report.json").exists():
            self._end()
            return
        try:
            run = self.world.ask("GET", f"/flow_runs/{run_id}")
        except StackError:
            return
        if run is None:
            return
        if run["state_type"] not in OVER:
            # Nobody tells Prefect that a process died together with its worker.
            began = run["state_type"] in ("RUNNING", "CANCELLING")
            if began and not self.world.runs_here().get(run_id):
                if self._crashed_at is None:
                    self._crashed_at = time.time()
                elif time.time() - self._crashed_at > 5:
                    self._resume("its process is gone and its run is said to be Running")
            else:
                self._crashed_at = None
            return
        if self._crashed_at is None:
            self._crashed_at = time.time()
        elif time.time() - self._crashed_at > 3:  # its report may be just being written
            why = f"its run is {run['state_name']}: {str((run.get('state') or {}).get('message'))[:200]}"
            begun = (self.folder / "job.json").exists() and run["state_name"] != "Refused"
            if not self._shot and begun and run["state_type"] != "CRASHED":
                self.complaints.append(f"the parent of {self.id} ended by itself: {why}")
            if run["state_type"] == "CRASHED" and self.chance.random() < 0.5:
                self._retry_in_the_ui(run_id, why)
            else:
                self._resume(why)

    def _retry_in_the_ui(self, run_id: str, why: str) -> None:
        """Source: the UI's `retryFlowRun` sets this very state, unforced, 3.8.8."""
        state = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": False}
        try:
            self.world.ask("POST", f"/flow_runs/{run_id}/set_state", state)
        except StackError:
            return
        self.resumed += 1
        self.world.log(f"{self.id}: Retry pressed ({why})")
        self._shot, self._crashed_at = False, None
        self._next_look = time.time() + RESUME_PAUSE_SECONDS

    def _resume(self, why: str) -> None:
        self.resumed += 1
        self.world.log(f"{self.id}: resumed ({why})")
        self._shot, self._crashed_at = False, None
        more = ["resume"] if (self.folder / "job.json").exists() and self.chance.random() < 0.7 else []
        if self._run is not None and not (self.folder / "job.json").exists():
            self._run = None
            self.world.log(f"{self.id}: there is no job yet, so that it is started anew as a plain process")
        self._keep_log()
        self._run = None
        self._start_process(*more)
        self._next_look = time.time() + RESUME_PAUSE_SECONDS

    def _end(self) -> None:
        self.ended = time.time()
        self._keep_log()

    def _keep_log(self) -> None:
        """Of a parent that is a flow run: what its page shows."""
        if self._run is None:
            return
        wanted = {"logs": {"flow_run_id": {"any_": [self._run]}}, "limit": 200, "sort": "TIMESTAMP_ASC"}
        try:
            lines = self.world.ask("POST", "/logs/filter", wanted) or []
        except StackError:
            return
        with self.log.open("a") as log:
            log.writelines(f"{line['timestamp']} {line['level']} {line['message']}\n" for line in lines)

    # ------------------------------------------------------------------ targets of the nemesis

    def parent_pids(self) -> list[int]:
        """The parent's processes that are there."""
        if self._process is not None:
            return [self._process.pid] if self._process.poll() is None else []
        return self.world.runs_here().get(self._run or "", [])

    def shoot_parent(self) -> int | None:
        """SIGKILL; the process number, None when there was none."""
        pids = self.parent_pids()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self._shot = bool(pids)
        return pids[0] if pids else None

    def child_runs(self) -> set[str]:
        """Ids of child runs that began at least one item, by the items' account."""
        return {x.run for x in self.executions()}

    def executions(self) -> list[Any]:
        return read_executions(self.trace, self.world.gone.get)

    # ------------------------------------------------------------------ the end

    def histories(self) -> list[RunHistory]:
        return read_runs(self.world.stack.request, self.id)

    def evidence(self) -> Evidence:
        """What is known of the job; the server must be up."""
        folder = JobFolder(job_folder_url(str(self.storage), self.id))
        report = self.folder / "report.json"
        runs = self.histories()
        here = self.world.runs_here()
        ids = {run.id for run in runs}
        return Evidence(
            job=self.id,
            max_in_flight=self.size.max_in_flight,
            attempts_allowed=RETRIES + 1,
            expected={i: "failed" if item["fail"] else "succeeded" for i, item in enumerate(self.items)},
            report=json.loads(report.read_bytes()) if report.exists() else None,
            outcomes=[
                (o.index, o.outcome.value, o.attempt, o.error_type) for o in folder.outcomes()
            ] if (self.folder / "job.json").exists() else [],
            attempts=read_attempts(self.folder),
            executions=self.executions(),
            runs=runs,
            alive=[(pid, run) for run, pids in here.items() if run in ids for pid in pids],
            quiet_seconds=FENCE_SECONDS + LATE_SECONDS,
            lets_go_seconds=FENCE_SECONDS + GRACE_SECONDS,
        )  # fmt: skip

    def is_quiet(self) -> bool:
        """No child run unsettled beyond those named, no process of one left."""
        report = json.loads((self.folder / "report.json").read_bytes()) if self._has_report() else None
        named = report["batches"]["unconfirmed"] if report else 0
        runs = self.histories()
        here = self.world.runs_here()
        return len(unsettled(runs)) <= named and not any(run.id in here for run in runs)

    def _has_report(self) -> bool:
        return (self.folder / "report.json").exists()


class Lane:
    """One job after another, until told to begin no more."""

    def __init__(self, make: Callable[[], ChaosJob]) -> None:
        self._make = make
        self.jobs: list[ChaosJob] = []

    @property
    def current(self) -> ChaosJob | None:
        return self.jobs[-1] if self.jobs and not self.jobs[-1].is_over else None

    def tend(self, *, more: bool) -> None:
        if self.current is None and more:
            self.jobs.append(self._make())
            self.jobs[-1].begin()
        elif self.current is not None:
            self.current.tend()
