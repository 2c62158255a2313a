"""Jobs whose child runs are containers: deployments of the tests' flows there, and an account of what ran when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import Flow

from orchestrator.stack import Stack
from tests.containers.engine import Engine, Ran
from tests.integration.job_support import TERMINAL, Watched, deploy, seconds

DOCKER_POOL = "docker"


def deploy_in_containers(flow: Flow[..., Any], function: str, name: str = "docker", **options: Any) -> str:
    """Register a flow of `tests/integration/job_flows.py` on the docker pool; its full name."""
    return deploy(flow, function, name, pool=DOCKER_POOL, **options)


class ContainerJob(Watched):
    """One job as four witnesses see it: folder, server, the items themselves, and the engine."""

    def __init__(self, stack: Stack, home: Path, job: str, engine: Engine) -> None:
        super().__init__(stack, home, job)
        self.engine = engine

    def containers(self) -> list[Any]:
        """Of its child runs, those that are there."""
        ours = {run["id"] for run in self.children()}
        return [c for c in self.engine.containers() if c.labels.get("io.prefect.flow-run-id") in ours]

    def processes(self) -> list[int]:
        """Numbers of processes mean nothing across the boundary: one per container that runs."""
        return [0 for container in self.containers() if container.status == "running"]

    def history(self) -> list[Ran]:
        """Containers of its child runs, gone ones included, by their start."""
        ours = {run["id"] for run in self.children()}
        return [ran for ran in self.engine.history() if ran.run in ours]

    def most_containers_at_once(self) -> int:
        """Most containers at one time whose run had not ended: what is left of one afterwards is its way out."""
        ended = {run["id"]: self.ended(run["id"]) for run in self.children()}
        changes: list[tuple[float, int]] = []
        for ran in self.history():
            ends = [at for at in (ran.ended, ended[ran.run]) if at is not None]
            changes += [(ran.began, 1), *([(max(min(ends), ran.began), -1)] if ends else [])]
        most = now = 0
        for _, change in sorted(changes):
            now += change
            most = max(most, now)
        return most

    def ended(self, run_id: str) -> float | None:
        """Epoch seconds at which a run ended; None when it has not."""
        return min((seconds(s["timestamp"]) for s in self.states(run_id) if s["type"] in TERMINAL), default=None)

    def cancel_what_is_left(self) -> None:
        for run in self.children():
            if run["state_type"] in ("SCHEDULED", "PENDING", "RUNNING"):
                self.stack.request("POST", f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}})
        for container in self.containers():
            container.remove(force=True)
