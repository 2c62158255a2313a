"""The stack's work pools and the workers that poll them."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from orchestrator.stack.api import StackError
from orchestrator.stack.containers import STACK_LABEL, DockerPool, docker_template
from orchestrator.stack.processes import MARK_VARIABLE
from orchestrator.stack.supervision import Crew
from orchestrator.stack.template import process_template


class Request(Protocol):
    """One HTTP request to the stack's server."""

    def __call__(self, method: str, path: str, body: Any = None) -> Any: ...


class Workers:
    """Pools and their workers: processes, and containers.

    Args:
        environment: What a worker starts with, asked anew at each start.
        request: Asks the server.
        limit: Most runs per worker at once unless said otherwise; None: no limit.
        fast_starts: As for `Stack`.

    Attributes:
        running: Worker's name -> its process, until it is stopped or killed by us.
    """

    def __init__(
        self,
        crew: Crew,
        environment: Callable[[], Mapping[str, str]],
        request: Request,
        *,
        limit: int | None,
        fast_starts: bool,
    ) -> None:
        self._crew, self._environment, self._request = crew, environment, request
        self._limit, self._fast_starts = limit, fast_starts
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def create_pool(self, name: str, limit: int | None) -> None:
        """Create a process work pool, or set the limit of the one that exists."""
        command = f"{sys.executable} -m orchestrator.start" if self._fast_starts else None
        body = {"name": name, "type": "process", "base_job_template": process_template(command)}
        try:
            self._request("POST", "/work_pools/", body | {"concurrency_limit": limit})
        except StackError:
            self._request("PATCH", f"/work_pools/{name}", {"concurrency_limit": limit})

    def create_docker_pool(self, pool: DockerPool, folder: Path) -> None:
        """Create a docker work pool whose containers find the stack's folder for jobs at its own path.

        A pool that exists gets the new template: a stack that is started again has another mark.
        """
        template = docker_template(
            image=pool.image,
            volumes=[f"{folder}:{folder}", *pool.volumes],
            # The mark: a guard that ends what is left finds processes of containers as any others.
            env={"ORCHESTRATOR_STORAGE": str(folder), MARK_VARIABLE: self._crew.mark, **pool.env},
            labels={STACK_LABEL: self._crew.mark, **pool.labels},
            user=pool.user or f"{os.geteuid()}:{os.getegid()}",
        )
        try:
            self._request("POST", "/work_pools/", {"name": pool.name, "type": "docker", "base_job_template": template})
        except StackError:
            self._request("PATCH", f"/work_pools/{pool.name}", {"base_job_template": template})

    def start(self, name: str | None, pool: str, limit: int | None, kind: str = "process") -> str:
        """Start a worker without waiting for it; its name."""
        name = name or f"worker-{secrets.token_hex(3)}"
        command = ["worker", "start", "--type", kind, "--pool", pool, "--name", name]
        limit = limit or self._limit
        if limit is not None:
            command += ["--limit", str(limit)]
        self.running[name] = self._crew.prefect(command, self._crew.log(name), self._environment())
        return name

    def wait_for(self, name: str, pool: str) -> None:
        """Wait until the server sees that worker online."""
        crew, process = self._crew, self.running[name]
        log = crew.log(name)

        def online() -> bool:
            if process.poll() is not None:
                raise StackError(f"the Prefect worker ended at its start ({log}):\n{crew.tail(log)}")
            workers = self._request("POST", f"/work_pools/{pool}/workers/filter", {})
            return any(w["name"] == name and w["status"] == "ONLINE" for w in workers)

        crew.wait_for(online, f"the Prefect worker was not online after {crew.start_seconds:g} s", log)

    def stop(self, name: str) -> None:
        """Ask a worker to end and wait for it; runs it started are ended with it."""
        process = self.running.pop(name)
        self._crew.end([process.pid])
        process.wait()

    def kill(self, name: str) -> None:
        """SIGKILL; the runs that it started keep running, with nobody to watch them."""
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def stop_all(self) -> None:
        """Ask all of them to end, at once, and wait."""
        self._crew.end([p.pid for p in self.running.values() if p.poll() is None])
        for process in self.running.values():
            process.wait()
