"""`Stack`: server, work pools, workers, deployments, in a folder and on a port of their own."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from orchestrator.errors import ConfigurationError
from orchestrator.stack.api import StackError, ask
from orchestrator.stack.choosing import only
from orchestrator.stack.containers import STACK_LABEL, DockerPool, check_engine, remove_containers
from orchestrator.stack.databases import Backing
from orchestrator.stack.processes import MARK_VARIABLE, end_marked, marked
from orchestrator.stack.server import Server
from orchestrator.stack.supervision import Crew
from orchestrator.stack.workers import Workers

_RECORD = "stack.json"
DATABASE_VARIABLE, REDIS_VARIABLE = "ORCHESTRATOR_STACK_DATABASE", "ORCHESTRATOR_STACK_REDIS"
"""In them the command line finds addresses that hold passwords; no process of a stack inherits them."""
_NOT_INHERITED = frozenset({MARK_VARIABLE, DATABASE_VARIABLE, REDIS_VARIABLE})


class Stack:
    """A Prefect of one's own; a context manager.

        with Stack() as stack:
            stack.deploy(Path("prefect.yaml"))
            subprocess.run([...], env=stack.environment)

    Safe against Ctrl-C, exceptions, the interpreter's end and our own SIGKILL: no process is left.

    Args:
        home: Folder for database, logs, results (it becomes `PREFECT_HOME`); kept afterwards, and a second start
            finds what the first left there. None: a temporary folder, removed at the end.
        port: TCP port on 127.0.0.1; None: a free one.
        pool: Name of the process work pool that is created and polled.
        pool_limit: Most runs of that pool at once; None: no limit.
        workers: Workers started with the stack, each polling every second.
        worker_limit: Most runs per worker at once; None: no limit.
        fast_starts: Start runs with one interpreter instead of two (`process_template`); False: Prefect's default.
        database: PostgreSQL for the server, `postgresql://user:password@host/name`: an empty database, or a Prefect's.
            None: SQLite in the home folder. Migrations run once, at the server's start.
        redis: Redis for the server's messaging, `redis://host:6379/0`, with a database on PostgreSQL alone.
        docker: A docker work pool besides, with a worker. Its containers run as the user of this process, find
            `jobs` at its own path, and reach the server on this machine's loopback.
        settings: More environment variables for the server, the workers and `environment`, e.g. Prefect settings.
        start_seconds: Deadline of each part's start.
        stop_seconds: Grace that processes get between SIGTERM and SIGKILL.

    Raises:
        ConfigurationError: the home folder or the port is in use by another stack or process; or the database or
            Redis cannot be reached, or holds something else; or no Docker engine answers, or it lacks the image.
        StackError: a part did not start.
    """

    def __init__(
        self,
        home: Path | None = None,
        port: int | None = None,
        *,
        pool: str = "local",
        pool_limit: int | None = None,
        workers: int = 1,
        worker_limit: int | None = None,
        fast_starts: bool = True,
        database: str | None = None,
        redis: str | None = None,
        docker: DockerPool | None = None,
        settings: Mapping[str, str] | None = None,
        start_seconds: float = 120,
        stop_seconds: float = 10,
    ) -> None:
        self.pool, self.docker = pool, docker
        self._pool_limit, self._workers_wanted = pool_limit, workers
        self._settings = dict(settings or {})
        self._own_home = home is None
        self._home = home
        self._wanted_port = port
        self._crew = Crew(start_seconds, stop_seconds)
        self.backing = Backing.read(database, redis)
        self._crew.hidden = self.backing.words
        # The server alone knows the addresses of its databases.
        self._server = Server(self._crew, lambda: self.environment | self.backing.settings, port, lambda: self.auth)
        self._pools = Workers(
            self._crew, lambda: self.environment, self.request, limit=worker_limit, fast_starts=fast_starts
        )
        self._released = False
        self._owner = os.getpid()

    # -- what it is

    @property
    def home(self) -> Path:
        """`PREFECT_HOME` of everything in the stack: database, `logs/`, results."""
        if self._home is None:
            raise RuntimeError("the stack has not been started")
        return self._home

    @property
    def jobs(self) -> Path:
        """Where job folders lie that are given no other place."""
        return self.home / "orchestrator" / "jobs"

    @property
    def ui_url(self) -> str:
        return f"http://127.0.0.1:{self._server.port}"

    @property
    def api_url(self) -> str:
        return f"{self.ui_url}/api"

    @property
    def workers(self) -> list[str]:
        """Names of the workers that run."""
        return [name for name, process in self._pools.running.items() if process.poll() is None]

    @property
    def _workers(self) -> dict[str, subprocess.Popen[bytes]]:
        return self._pools.running

    @property
    def _mark(self) -> str:
        return self._crew.mark

    @property
    def own_settings(self) -> dict[str, str]:
        """The variables that point a client at this stack and at nothing else; see `environment`."""
        return {
            "PREFECT_HOME": str(self.home),
            "PREFECT_PROFILES_PATH": str(self.home / "profiles.toml"),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "DO_NOT_TRACK": "1",
            "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1,localhost"])),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_CLI_PROMPT": "false",
            **self._auth_settings,
            **self._settings,
        }

    @property
    def auth(self) -> str | None:
        """`user:password` of a server that was given one (`PREFECT_SERVER_API_AUTH_STRING`); None without."""
        return self._settings.get("PREFECT_API_AUTH_STRING") or self._settings.get("PREFECT_SERVER_API_AUTH_STRING")

    @property
    def _auth_settings(self) -> dict[str, str]:
        # The server reads one variable, its clients (workers and runs among them) another.
        return {} if self.auth is None else {"PREFECT_API_AUTH_STRING": self.auth}

    @property
    def environment(self) -> dict[str, str]:
        """A whole environment for clients (`subprocess.run(..., env=...)`): ours without any `PREFECT_*`, plus theirs.

        The user's profile, API key and server settings do not reach into the stack.
        """
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_") and k not in _NOT_INHERITED}
        return inherited | self.own_settings

    @property
    def is_up(self) -> bool:
        """Its server runs; False also when somebody else ended it."""
        return self._server.is_up

    @property
    def server_pid(self) -> int | None:
        """The server's process, ended or not; None before its first start."""
        return self._server.pid

    def processes(self) -> list[int]:
        """Ids of all running processes of the stack, flow runs and their children included."""
        return self._crew.processes()

    @contextmanager
    def activated(self) -> Iterator[Self]:
        """Within: this process is a client of the stack too (`os.environ`, and Prefect's settings once imported)."""
        before = dict(os.environ)
        self._set_environment(self.environment)
        try:
            yield self
        finally:
            self._set_environment(before)

    @staticmethod
    def _set_environment(environment: Mapping[str, str]) -> None:
        os.environ.clear()
        os.environ.update(environment)
        context = sys.modules.get("prefect.context")
        if context is not None:  # settings were read when Prefect was imported; make it read them again
            context.refresh_global_settings_context()

    # -- start and stop

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start server, pool and workers; returns when the workers are online. On any error everything is stopped."""
        if self._wanted_port is not None and not 1 <= self._wanted_port <= 65_535:
            raise ConfigurationError(f"must be 1 to 65535, got {self._wanted_port}", field="port")
        self.backing.look()
        if self.docker is not None:
            check_engine(self.docker.image)
        if self._home is None:
            self._home = Path(tempfile.mkdtemp(prefix="orchestrator-stack-"))
        else:
            self._home = self._home.expanduser().resolve()
            self._refuse_home_in_use()
        try:
            (self._home / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ConfigurationError(f"{self._home} cannot be a folder: {e.strerror or e}", field="home") from e
        self._crew.home = self._home
        atexit.register(self.stop)
        try:
            self._crew.guard()
            self.start_server()
            self.create_pool(self.pool, limit=self._pool_limit)
            names = [(self.start_worker(wait=False), self.pool) for _ in range(self._workers_wanted)]
            if self.docker is not None:
                self.jobs.mkdir(parents=True, exist_ok=True)  # else the engine makes it, as root
                self._pools.create_docker_pool(self.docker, self.jobs)
                names.append((self.start_worker(pool=self.docker.name, wait=False), self.docker.name))
            for name, pool in names:
                self._pools.wait_for(name, pool)
            self._write_record()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process of the stack (SIGTERM, grace, SIGKILL) and remove a temporary home. Idempotent.

        Workers go first, so that nothing new starts; then the runs, which may still report to the server; then it.
        An interrupt while waiting ends the grace at once.
        """
        if self._home is None or self._released or os.getpid() != self._owner:
            return  # nothing to stop, not ours to stop any more, or a fork of ours is ending
        try:
            self._pools.stop_all()
            if self.docker is not None:
                remove_containers(STACK_LABEL, self._mark)
            self._crew.end([pid for pid in self.processes() if pid != self._server.pid])
            self._server.stop()
            self._crew.end_all(grace=True)
        finally:
            self._crew.end_all(grace=False)
            self._crew.release()
            (self._home / _RECORD).unlink(missing_ok=True)
            if self._own_home:
                shutil.rmtree(self._home, ignore_errors=True)
            atexit.unregister(self.stop)
            self._server.forget()
            self._pools.running.clear()

    def release(self) -> None:
        """Leave the stack running when this process ends; `Stack.stop_left(home)` stops it later."""
        self._released = True
        self._crew.release()
        atexit.unregister(self.stop)

    @classmethod
    def stop_left(cls, home: Path, stop_seconds: float = 10) -> int:
        """Stop a stack that `release` left running in that home; returns how many processes were ended.

        Raises:
            ConfigurationError: no stack was left there.
        """
        record = home.expanduser() / _RECORD
        try:
            left = json.loads(record.read_text())
        except (OSError, ValueError) as e:
            raise ConfigurationError(f"no stack was left running in {home}") from e
        if left.get("docker"):
            remove_containers(STACK_LABEL, left["mark"])
        ended = end_marked(left["mark"], stop_seconds)
        record.unlink(missing_ok=True)
        if left["own_home"]:
            shutil.rmtree(home, ignore_errors=True)
        return ended

    def _write_record(self) -> None:
        facts = {
            "mark": self._mark, "api_url": self.api_url, "ui_url": self.ui_url, "own_home": self._own_home,
            "docker": self.docker is not None,
        }  # fmt: skip
        (self.home / _RECORD).write_text(json.dumps(facts))

    def _refuse_home_in_use(self) -> None:
        record = self.home / _RECORD
        try:
            other = json.loads(record.read_text())
        except (OSError, ValueError):
            return
        if marked(other["mark"]):
            raise ConfigurationError(
                f"a stack already runs in {self.home} ({other['ui_url']}); "
                f"stop it with `orchestrator up --stop {self.home}`, or choose another folder"
            )

    # -- its parts, one by one

    def start_server(self) -> None:
        """Start the server (on the same port as before, if it ran before) and wait until it is healthy."""
        self._server.start()

    def stop_server(self) -> None:
        """Stop the server in order; its database stays, `start_server` continues with it."""
        self._server.stop()

    def kill_server(self) -> None:
        """SIGKILL the server: what it held in memory is lost."""
        self._server.kill()

    def create_pool(self, name: str, *, limit: int | None = None) -> None:
        """Create a process work pool, or set the limit of the one that exists."""
        self._pools.create_pool(name, limit)

    def start_worker(
        self, name: str | None = None, *, pool: str | None = None, limit: int | None = None, wait: bool = True
    ) -> str:
        """Start a worker and, with `wait`, wait until the server sees it online; returns its name."""
        kind = "docker" if self.docker is not None and pool == self.docker.name else "process"
        name = self._pools.start(name, pool or self.pool, limit, kind)
        if wait:
            self._pools.wait_for(name, pool or self.pool)
        return name

    def stop_worker(self, name: str) -> None:
        """Ask a worker to end and wait for it; runs it started are ended with it."""
        self._pools.stop(name)

    def kill_worker(self, name: str) -> None:
        """SIGKILL a worker; the runs that it started keep running, with nobody to watch them."""
        self._pools.kill(name)

    # -- deployments and requests

    def deploy(self, path: Path, *names: str, folder: Path | None = None) -> None:
        """Deploy a `prefect.yaml`, all of it by default; relative paths in it count from its folder.

        Args:
            names: Only these, each as `<function>/<deployment>`, with dashes for the function's underscores; those of
                this package by their flow's name, as `orchestrate/default`.
            folder: From which relative paths count instead.

        Raises:
            StackError: `prefect deploy` failed; the text ends with what it printed. Or there is none of a name.
        """
        path = path.resolve()
        with tempfile.TemporaryDirectory(prefix="orchestrator-deploy-") as scratch:
            file = only(path, names, Path(scratch)) if names else path
            done = subprocess.run(
                [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(file), "--all"],
                cwd=folder or path.parent,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
        with self._crew.log("deploy").open("a") as log:
            log.write(done.stdout + done.stderr)
        if done.returncode != 0:
            printed = (done.stdout + done.stderr).strip().splitlines()[-20:]
            raise StackError(f"`prefect deploy` of {path} failed:\n" + "\n".join(printed))

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """One HTTP request to the server's API; the decoded JSON answer, None when there is none.

        Raises:
            StackError: the server cannot be reached or answers with an error.
        """
        return ask(self.api_url, method, path, body, self.auth)
