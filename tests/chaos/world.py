"""The stack that faults happen to: a server, workers, three proxies, a small disk, and an eye on every process."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
from prefect.client.orchestration import get_client
from prefect.utilities.callables import parameter_schema

from orchestrator.engine.registering import register
from orchestrator.flows.parent import orchestrate_flow
from orchestrator.stack import Stack, StackError
from orchestrator.stack.processes import MARK_VARIABLE, spawn
from tests.chaos import chaos_flow
from tests.chaos.disk import SmallDisk
from tests.chaos.proxy import Proxy

T = TypeVar("T")
POOL = "chaos"
BATCHES, PARENT = "chaos-work/default", "orchestrate/chaos"
GRACE_SECONDS, FENCE_SECONDS = 5.0, 2.0
DOORS = ("parent", "children", "worker")
ROOT = Path(__file__).parents[2]


class World:
    """A context manager.

    Args:
        home: A new folder for everything; kept.
        workers: Process workers; one that dies is replaced by `keep_workers`.
        log: Takes each line of the nemesis's story.
    """

    def __init__(self, home: Path, *, workers: int = 2, log: Callable[[str], None] = print) -> None:
        self.home, self.log = home, log
        (home / "stack").mkdir(parents=True)
        port = _free_port()
        self.doors = {name: Proxy(port) for name in DOORS}
        for door in self.doors.values():
            door.start()
        self._settings = {
            "ORCHESTRATOR_ITEM_GRACE_SECONDS": f"{GRACE_SECONDS:g}",
            "ORCHESTRATOR_FENCE_SECONDS": f"{FENCE_SECONDS:g}",
            "PYTHONPATH": str(ROOT),
            # So that what is cancelled after its process died is over while the campaign still looks on.
            "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS": "60",
            # Workers, and the commands that a stack itself runs, go through the worker's door.
            "PREFECT_API_URL": self.doors["worker"].url,
        }
        self.stack = Stack(
            home / "stack", port, pool=POOL, workers=workers, settings=self._settings, stop_seconds=5, start_seconds=600
        )
        self.disk = SmallDisk(home / "jobs")
        self._workers_wanted = workers
        self._numbers = itertools.count(1)
        self._held: set[str] = set()  # workers that a fault holds down
        self._lock = threading.RLock()
        self.gone: dict[int, float] = {}
        self._eyes: dict[int, psutil.Process] = {}
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="process-watch", daemon=True)

    def __enter__(self) -> World:
        try:
            self.disk.mount()
            self.stack.start()
            with self.stack.activated():
                self._deploy()
            self._watcher.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._over.set()
        self.disk.free()
        self.stack.stop()
        for door in self.doors.values():
            door.stop()
        kept = self.home / "jobs-kept"
        if self.disk.missing is None and any(self.disk.folder.iterdir()):
            shutil.copytree(self.disk.folder, kept, dirs_exist_ok=True)
        self.disk.unmount()

    def _deploy(self) -> None:
        with get_client(sync_client=True) as client:
            flow = chaos_flow.work
            client.create_deployment(
                flow_id=client.create_flow(flow),
                name="default",
                work_pool_name=POOL,
                entrypoint="chaos_flow.py:work",
                path=".",
                pull_steps=[
                    {"prefect.deployments.steps.set_working_directory": {"directory": str(Path(__file__).parent)}}
                ],
                parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
                enforce_parameter_schema=True,
                job_variables={"command": self._command("children")},
            )
        env = {k: v for k, v in self._settings.items() if k.startswith("ORCHESTRATOR_")}
        asyncio.run(
            register(
                orchestrate_flow,
                "chaos",
                pool=POOL,
                version="chaos",
                job_variables={"env": env, "command": self._command("parent")},
            )
        )

    def _command(self, door: str) -> str:
        """How a run's process starts, behind that door.

        A job's `env` would not do: where there is a `command`, the worker's own settings come after it.
        Source: prefect runner/_starter_engine.py, 3.8.8.
        """
        return f"env PREFECT_API_URL={self.doors[door].url} {sys.executable} -m orchestrator.start"

    # ------------------------------------------------------------------ processes

    def start_parent(self, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
        """A parent as a plain process, through its own door; ended with the stack whatever happens."""
        environment = self.stack.environment | {
            MARK_VARIABLE: self.stack._mark,
            "PREFECT_API_URL": self.doors["parent"].url,
        }
        command = [sys.executable, "-m", "tests.chaos.parent", *arguments]
        return spawn(command, environment=environment, folder=ROOT, log=log)

    def runs_here(self) -> dict[str, list[int]]:
        """Flow run id -> its processes on this machine, the outermost first."""
        found: dict[str, list[int]] = {}
        for pid in self.stack.processes():
            try:
                process = psutil.Process(pid)
                run = process.environ().get("PREFECT__FLOW_RUN_ID")
                if run and process.status() != psutil.STATUS_ZOMBIE:
                    found.setdefault(run, []).append(pid)
            except (psutil.Error, OSError):
                continue
        return found

    def _watch(self) -> None:
        """Note when processes of items are gone; every quarter of a second."""
        files: dict[Path, int] = {}
        while not self._over.wait(0.25):
            for path in (self.home / "traces").glob(f"*/{chaos_flow.ACCOUNT}"):
                with path.open() as file:
                    file.seek(files.get(path, 0))
                    while (line := file.readline()).endswith("\n"):
                        files[path] = file.tell()
                        self._see(json.loads(line)["pid"])
            for pid, process in list(self._eyes.items()):
                if not process.is_running() or _is_zombie(process):
                    del self._eyes[pid]
                    self.gone[pid] = time.time()

    def _see(self, pid: int) -> None:
        if pid not in self._eyes and pid not in self.gone:
            try:
                self._eyes[pid] = psutil.Process(pid)
            except psutil.NoSuchProcess:
                self.gone[pid] = time.time()

    # ------------------------------------------------------------------ workers

    def worker(self, name: str) -> psutil.Process:
        return psutil.Process(self.stack._workers[name].pid)

    def workers(self) -> list[str]:
        with self._lock:
            return [name for name in self.stack.workers if name not in self._held]

    def kill_worker(self, name: str) -> None:
        with self._lock:
            self.stack.kill_worker(name)

    def add_worker(self) -> str:
        """What a supervisor does with a worker that died."""
        with self._lock:
            return self.stack.start_worker(f"again-{next(self._numbers)}", wait=False)

    def keep_workers(self) -> None:
        """Replace workers that ended by themselves."""
        with self._lock:
            for name, process in list(self.stack._workers.items()):
                if process.poll() is not None:
                    self.log(f"worker {name} ended by itself with {process.returncode}; another one is started")
                    del self.stack._workers[name]
                    self.add_worker()

    # ------------------------------------------------------------------ the server

    def end_server(self, *, kills: bool) -> None:
        """SIGKILL it, or ask it to end and wait."""
        with self._lock:
            (self.stack.kill_server if kills else self.stack.stop_server)()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """A request to the server, not through any door; None while it is down.

        Raises:
            StackError: it answers with an error.
        """
        try:
            return self.stack.request(method, path, body)
        except StackError:
            if not self.stack.is_up:
                return None
            raise


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
