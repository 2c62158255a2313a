"""What a child run in a container costs beside one in a process: the same batch flow, parent and server, in turns.

With an image of this checkout under its tag (docs/containers.md) and an engine on this machine whose cgroups can be
read (its cgroup driver is `cgroupfs`). Children do nothing: what is measured is what it takes to run them.
"""

from __future__ import annotations

import json
import secrets
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.metering import LOGGED, Meter, Spent
from benchmarks.table import Row
from orchestrator.stack import DockerPool, Stack

HERE = Path(__file__).parent
CHILDREN, AT_ONCE, ROUNDS = 6, 2, 2
DEPLOYMENTS = {"process": "bench-noop/default", "container": "bench-noop/docker"}


@dataclass
class Side:
    """What one kind of child spent over all rounds."""

    spent: list[Spent] = field(default_factory=list)
    inside: float = 0.0  # CPU seconds in containers
    wall: float = 0.0
    starts: list[float] = field(default_factory=list)  # seconds from Pending to Running

    @property
    def total(self) -> Spent:
        return sum(self.spent[1:], self.spent[0])


def apart(stack: Stack) -> str:
    """Give the pool's containers a cgroup of their own, so that nobody else's are counted; its name."""
    name = f"bench-{secrets.token_hex(4)}"
    template = stack.request("GET", "/work_pools/docker")["base_job_template"]
    template["job_configuration"]["container_create_kwargs"]["cgroup_parent"] = f"/{name}"
    stack.request("PATCH", "/work_pools/docker", {"base_job_template": template})
    return name


def cpu_of_containers(cgroup: str) -> float:
    """CPU seconds of all containers that ever ran in a cgroup."""
    old, new = Path(f"/sys/fs/cgroup/cpuacct/{cgroup}/cpuacct.usage"), Path(f"/sys/fs/cgroup/{cgroup}/cpu.stat")
    if old.exists():
        return int(old.read_text()) / 1e9
    words = new.read_text().split() if new.exists() else []  # else none has run yet
    return int(words[words.index("usage_usec") + 1]) / 1e6 if words else 0.0


def run(stack: Stack, meter: Meter, side: Side, cgroup: str, deployment: str, children: int, at_once: int) -> None:
    """One job."""
    before, inside = meter.read(), cpu_of_containers(cgroup)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.parents", "ours", str(children), str(at_once), deployment],
        cwd=HERE.parent, env=stack.environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    meter.settle()
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if said["completed"] != children:
        raise RuntimeError(f"{deployment}: {said['completed']} of {children} child runs completed")
    side.spent.append(meter.read() - before)
    side.inside += cpu_of_containers(cgroup) - inside
    side.wall += said["wall"]


def starts(stack: Stack, deployment: str) -> list[float]:
    """Seconds from Pending, when a worker has the run, to Running, of all runs of a deployment."""
    id_ = stack.request("GET", f"/deployments/name/{deployment}")["id"]
    runs = stack.request("POST", "/flow_runs/filter", {"deployments": {"id": {"any_": [id_]}}})
    found = []
    for one in runs:
        states = stack.request("GET", f"/flow_run_states/?flow_run_id={one['id']}")
        at = {s["type"]: datetime.fromisoformat(s["timestamp"]) for s in reversed(states)}
        found.append((at["RUNNING"] - at["PENDING"]).total_seconds())
    return found


def rows(*, children: int = CHILDREN, at_once: int = AT_ONCE, rounds: int = ROUNDS) -> list[Row]:
    sides = {name: Side() for name in DEPLOYMENTS}
    with Stack(settings=LOGGED, docker=DockerPool(volumes=[f"{HERE}:{HERE}:ro"])) as stack:
        stack.deploy(HERE / "prefect.yaml", "noop/default")
        twin = {
            "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": str(HERE)}}],
            "deployments": [{"name": "docker", "entrypoint": "flows.py:noop", "work_pool": {"name": "docker"}}],
        }
        (stack.home / "twin.yaml").write_text(json.dumps(twin))
        stack.deploy(stack.home / "twin.yaml", folder=HERE)
        meter, cgroup = Meter(stack), apart(stack)
        for _ in range(rounds):
            for name, deployment in DEPLOYMENTS.items():
                run(stack, meter, sides[name], cgroup, deployment, children, at_once)
        for name, deployment in DEPLOYMENTS.items():
            sides[name].starts = starts(stack, deployment)
    mine, other, n = sides["container"], sides["process"], children * rounds

    def line(measure: str, a: float, b: float) -> Row:
        return Row("containers", measure, a, b, "process", a / b if b else None)

    a, b = mine.total, other.total
    return [
        line(
            "seconds from Pending to Running, median", statistics.median(mine.starts), statistics.median(other.starts)
        ),
        line("seconds from Pending to Running, most", max(mine.starts), max(other.starts)),
        line(f"wall seconds per child run, {at_once} at once", mine.wall / n, other.wall / n),
        line("CPU seconds per child run: the child", (a.children + mine.inside) / n, (b.children + other.inside) / n),
        line("CPU seconds per child run: the workers", a.worker / n, b.worker / n),
        line("CPU seconds per child run: the server", a.server / n, b.server / n),
        line("HTTP requests per child run, both workers' included", a.requests / n, b.requests / n),
        line("websockets per child run", a.sockets / n, b.sockets / n),
    ]
