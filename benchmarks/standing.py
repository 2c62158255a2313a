"""What the measurements over simulated child runs share: a stack on one database or the other, and one watched job."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.metering import LOGGED, cpu_of
from benchmarks.scale import in_memory
from orchestrator.stack import Stack
from tests.postgres import postgres_server
from tests.redis_server import redis_server

ROOT = Path(__file__).parent.parent


@dataclass
class Standing:
    """A stack without a worker, and the processes of its databases."""

    name: str
    stack: Stack
    databases: list[psutil.Process]

    @property
    def log(self) -> Path:
        return self.stack.home / "logs" / "server.log"

    def cpu(self) -> tuple[float, float]:
        """CPU seconds so far: the server's, and its databases' (their ended processes included)."""
        server = psutil.Process(self.stack.server_pid)
        return cpu_of(server), sum(map(_with_children, self.databases))


def _with_children(process: psutil.Process) -> float:
    times = process.cpu_times()
    total = float(times.user + times.system + times.children_user + times.children_system)
    for child in process.children(recursive=True):
        try:
            total += cpu_of(child)
        except psutil.NoSuchProcess:  # counted with its parent from now on
            continue
    return total


@contextmanager
def standing(name: str, *, redis: bool = True) -> Iterator[Standing]:
    """A stack named `SQLite`, or on PostgreSQL (and Redis) with the durability that they have by default."""
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="orchestrator-bench-")))
        options: dict[str, str] = {}
        before = {child.pid for child in psutil.Process().children()}
        if name != "SQLite":
            postgres = opened.enter_context(postgres_server(durable=True))
            postgres.create("bench")
            options["database"] = postgres.address("bench")
            if redis:
                options["redis"] = opened.enter_context(redis_server(folder / "redis"))
        databases = [child for child in psutil.Process().children() if child.pid not in before]
        with Stack(workers=0, settings=LOGGED, **options) as stack:
            stack.deploy(Path(__file__).parent / "prefect.yaml", "short/default")
            yield Standing(name, stack, databases)


@dataclass
class Job:
    """One job, as its parent's lines and the server tell it."""

    samples: list[dict[str, float]]
    end: dict[str, Any]
    worker: dict[str, float]
    runs: list[dict[str, Any]] = field(default_factory=list)
    busy: int = 0


def watch(
    where: Standing, *, batches: int, per_batch: int, at_once: int, seconds: float, reads: bool = True,
    storage: str | None = None, environment: dict[str, str] | None = None, deadline_seconds: float = 3600,
) -> Job:  # fmt: skip
    """Run one job to its end.

    Args:
        seconds: A child run's time, on average.
        reads: Whether simulated child runs ask the server what real ones would (`standin.READS`).
        storage: Of the job; by default a folder in memory.
    """
    stack, job_id = where.stack, f"bench-{time.time_ns()}"
    env = stack.environment | (environment or {})
    begin = where.log.stat().st_size
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-jobs-", dir=in_memory()) as folder:
        worker = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.standin", stack.pool, *([] if reads else ["--lean"])],
            cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        arguments = [batches * per_batch, per_batch, at_once, seconds, storage or folder, job_id]
        parent = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.standin_parent", *map(str, arguments)],
            cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            samples = list(_samples(where, parent, time.monotonic() + deadline_seconds))
        finally:
            parent.kill()
            parent.communicate()
            worker.terminate()
            said, _ = worker.communicate(timeout=60)
    if not samples or not samples[-1].get("over"):
        raise RuntimeError(f"the parent ended with {parent.returncode} before its job was over")
    runs = list(_runs(stack, job_id))
    return Job(samples, samples[-1], json.loads(said.splitlines()[-1]), runs, _busy(where.log, begin))


def _samples(where: Standing, parent: subprocess.Popen[str], deadline: float) -> Iterator[dict[str, Any]]:
    assert parent.stdout is not None
    for line in parent.stdout:
        server, databases = where.cpu()
        yield json.loads(line) | {"server": server, "databases": databases}
        if time.monotonic() > deadline:
            raise RuntimeError("the job was not over in time")


def _runs(stack: Stack, job_id: str) -> Iterator[dict[str, Any]]:
    offset = 0
    while True:
        wanted = {"flow_runs": {"tags": {"all_": [f"job:{job_id}"]}}, "limit": 200, "offset": offset}
        page = stack.request("POST", "/flow_runs/filter", wanted | {"sort": "ID_DESC"})
        yield from page
        if len(page) < 200:
            return
        offset += 200


def _busy(log: Path, begin: int) -> int:
    """Answers 503 in the access log since then."""
    with log.open("rb") as lines:
        lines.seek(begin)
        return sum(b'" 503' in line for line in lines)
