"""The scaled-out stack as somebody starts it who read docs/operations.md: a copy of docker/, a .env, `docker compose`.

On the machine's own network (compose.host.yaml), and with whatever images there are under the names of .env.example.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import docker
from tests.containers.engine import ROOT, TEST_LABEL, Engine, missing, program
from tests.docs.pages import blocks
from tests.docs.reader import commands
from tests.support import eventually

PROJECT_LABEL = "com.docker.compose.project"
SERVICE_LABEL = "com.docker.compose.service"
JOBS_LABEL = "io.prefect-batch-orchestrator.project"
"""On containers of child runs, which the docker worker starts and compose does not know."""
PORTS = ("PORT", "API_1_PORT", "API_2_PORT", "POSTGRES_PORT", "REDIS_PORT", "WORKER_PROCESS_PORT", "WORKER_DOCKER_PORT")
SECRETS = ("PREFECT_AUTH", "POSTGRES_PASSWORD", "REDIS_PASSWORD")
SERVICES = {"postgres", "redis", "api-1", "api-2", "background", "proxy", "worker-process", "worker-docker"}
ONCE = {"migrate", "setup"}
"""They do their work and end."""
UP_SECONDS = 420.0
PAGE = ROOT / "docs" / "stack.md"

_HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def compose_program() -> list[str]:
    """`docker compose`, or the older `docker-compose`; skips or fails where there is neither."""
    docker_program = program()
    plugin = subprocess.run([docker_program, "compose", "version"], capture_output=True, timeout=60, check=False)
    if plugin.returncode == 0:
        return [docker_program, "compose"]
    if (old := shutil.which("docker-compose")) is None:
        missing("there is neither `docker compose` nor docker-compose; `apt-get install docker-compose` brings one")
    return [str(old)]


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that are free now, each another one."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def section(heading: str) -> list[str]:
    """The commands under a heading of the page, from top to bottom."""
    lines = PAGE.read_text().splitlines()
    begin = next(n for n, line in enumerate(lines, 1) if re.fullmatch(rf"#+ {heading}", line))
    end = next((n for n, line in enumerate(lines, 1) if n > begin and re.match(r"##+ ", line)), len(lines) + 1)
    found = [b for b in blocks(PAGE) if b.language == "bash" and begin < b.line < end]
    return [command for block in found for command in commands(block)]


class ComposeError(AssertionError):
    """A compose command did not end well; the text has what it printed."""


class Compose:
    """One stack: its folder, its project, its commands.

    Args:
        folder: An empty folder for the copy of docker/ and of nothing else of the repository.
        image: The image of flows, workers and servers.
    """

    def __init__(self, engine: Engine, folder: Path, image: str) -> None:
        self.engine, self.folder = engine, folder / "docker"
        self.project = f"orchestrator-test-{secrets.token_hex(3)}"
        self._program = compose_program()
        shutil.copytree(ROOT / "docker", self.folder, ignore=shutil.ignore_patterns(".env", "*.lock"))
        self.secrets = {name: secrets.token_hex(16) for name in SECRETS} | {
            "PREFECT_AUTH": f"admin:{secrets.token_hex(16)}"
        }
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self._write_standins()
        self.settings = {
            **self.secrets, **{name: str(port) for name, port in self.ports.items()},
            "COMPOSE_FILE": "compose.yaml:compose.host.yaml:standins.yaml", "COMPOSE_PROJECT_NAME": self.project,
            "PUBLIC_URL": f"http://127.0.0.1:{self.ports['PORT']}", "FLOW_IMAGE": image, "WORKER_GRACE": "3s",
            "DOCKER_SOCKET": os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://"),
        }  # fmt: skip
        self.write_environment()
        self._find_images()

    # -- before it starts

    def write_environment(self, **instead: str) -> None:
        """.env, from .env.example; other values on request."""
        text, wanted = (self.folder / ".env.example").read_text(), self.settings | instead
        for name, value in wanted.items():
            line = f"{name}={value}"
            text, found = re.subn(rf"^{name}=.*$", lambda _, line=line: line, text, flags=re.MULTILINE)  # type: ignore[misc]
            text += "" if found else f"{line}\n"
        (self.folder / ".env").write_text(text)

    def _write_standins(self) -> None:
        """What tests need besides: their label; a Redis of any image that may write to its volume."""
        labels = {TEST_LABEL: self.engine.session}
        services: dict[str, Any] = {name: {"labels": labels} for name in [*SERVICES, *ONCE, "orchestrator"]}
        services["redis"]["user"] = "0:0"
        (self.folder / "standins.yaml").write_text(yaml.safe_dump({"services": services}))

    def _find_images(self) -> None:
        for service, wanted in self.config()["services"].items():
            try:
                self.engine.client.images.get(wanted["image"])
            except docker.errors.ImageNotFound:
                missing(f"the engine has no image {wanted['image']} (service {service})")

    # -- commands

    @property
    def environment(self) -> dict[str, str]:
        """A terminal's: nothing of the tests' own may stand in for .env."""
        own = (*self.settings, "COMPOSE_", "PREFECT_", "ORCHESTRATOR_")
        return {k: v for k, v in os.environ.items() if not k.startswith(own)}

    def __call__(self, *arguments: str, check: bool = True, deadline_seconds: float = UP_SECONDS,
                 stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
        """`docker compose ARGUMENTS` in the folder.

        Raises:
            ComposeError: it ended with another code than 0, and `check` is set.
        """
        done = subprocess.run([*self._program, *arguments], cwd=self.folder, env=self.environment, capture_output=True,
                              timeout=deadline_seconds, check=False, input=stdin or b"")  # fmt: skip
        if check and done.returncode != 0:
            said = f"{done.stdout.decode(errors='replace')[-3000:]}\n{done.stderr.decode(errors='replace')[-3000:]}"
            raise ComposeError(f"{shlex.join(arguments)} ended with {done.returncode}:\n{said}\n{self.tails()}")
        return done

    def config(self) -> Any:
        return yaml.safe_load(self("config").stdout)

    def read(self, commands: Sequence[str]) -> str:
        """Do what the page says; what it printed.

        Raises:
            ComposeError: a command did not end well.
        """
        said = []
        for command in commands:
            line = command.replace("docker compose", shlex.join(self._program))
            done = subprocess.run(["bash", "-eu", "-o", "pipefail", "-c", line], cwd=self.folder, env=self.environment,
                                  capture_output=True, text=True, timeout=UP_SECONDS, check=False,
                                  stdin=subprocess.DEVNULL)  # fmt: skip
            if done.returncode != 0:
                raise ComposeError(
                    f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}\n{self.tails()}"
                )
            said.append(done.stdout)
        return "".join(said)

    def up(self) -> None:
        """The documented command, and everything in good health."""
        self.read([line for line in section("Start") if line.startswith("docker compose up")])
        self.be_well()

    def be_well(self) -> None:
        """Wait until everything is; an error has the ends of the logs of what is not."""
        try:
            eventually(lambda: not self.unwell(), UP_SECONDS, "everything is well")
        except AssertionError as e:
            raise ComposeError(f"{e}\n{self.unwell()}\n{self.tails()}") from e

    def run(self, *arguments: str, entrypoint: str | None = None, env: Mapping[str, str] | None = None,
            check: bool = True, deadline_seconds: float = 300) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
        """`docker compose run --rm orchestrator ARGUMENTS`."""
        options = [part for name, value in (env or {}).items() for part in ("-e", f"{name}={value}")]
        options += ["--entrypoint", entrypoint] if entrypoint else []
        return self("run", "--rm", "-T", "--no-deps", *options, "orchestrator", *arguments, check=check,
                    deadline_seconds=deadline_seconds)  # fmt: skip

    def report(self, job: str) -> Any:
        """What `report --json` prints of a job, whatever its exit code."""
        return json.loads(self.run("report", job, "--json", check=False).stdout)

    def put(self, name: str, text: str) -> None:
        """Write a file on the volume of the jobs."""
        coded = base64.b64encode(text.encode()).decode()
        self.run("-c", f"mkdir -p $(dirname {name}) && echo {coded} | base64 -d > {name}", entrypoint="sh")

    # -- what there is

    def containers(self, service: str | None = None) -> list[Any]:
        """Containers of the project, ended ones included."""
        wanted = [f"{PROJECT_LABEL}={self.project}"] + ([f"{SERVICE_LABEL}={service}"] if service else [])
        return list(self.engine.client.containers.list(all=True, filters={"label": wanted}, ignore_removed=True))

    def service(self, name: str) -> Any:
        """The one container of a service."""
        (found,) = self.containers(name)
        return found

    def child_containers(self) -> list[Any]:
        wanted = {"label": f"{JOBS_LABEL}={self.project}"}
        return list(self.engine.client.containers.list(all=True, filters=wanted, ignore_removed=True))

    def volumes(self) -> list[str]:
        wanted = {"label": f"{PROJECT_LABEL}={self.project}"}
        return sorted(volume.name for volume in self.engine.client.volumes.list(filters=wanted))

    def unwell(self) -> dict[str, str]:
        """Services that are not as they should be, and how they are."""
        found: dict[str, str] = {}
        for container in self.containers():
            name, state = container.labels[SERVICE_LABEL], container.attrs["State"]
            if name in ONCE:
                if state["Status"] != "exited" or state["ExitCode"] != 0:
                    found[name] = f"{state['Status']} {state['ExitCode']}"
            elif name in SERVICES:
                health = state.get("Health", {}).get("Status", "healthy")
                if state["Status"] != "running" or health != "healthy":
                    found[name] = f"{state['Status']} {health}"
        there = {container.labels[SERVICE_LABEL] for container in self.containers()}
        return found | dict.fromkeys((SERVICES | ONCE) - there, "absent")

    def tails(self, lines: int = 12) -> str:
        """The ends of the logs of what is not well."""
        told = []
        for container in self.containers():
            name = container.labels[SERVICE_LABEL]
            if name in self.unwell():
                told.append(f"--- {name}\n{container.logs(tail=lines).decode(errors='replace')}")
        return "\n".join(told)

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['PORT']}/api"

    def ask(self, method: str, path: str, body: Any = None, auth: str | None = "") -> Any:
        """One request at the one address; with the right credentials unless others (None: none) are given.

        Raises:
            urllib.error.HTTPError: as answered.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.api_url}{path}", data, {"content-type": "application/json"}, method=method
        )
        if auth is not None:
            coded = base64.b64encode((auth or self.secrets["PREFECT_AUTH"]).encode()).decode()
            request.add_header("authorization", f"Basic {coded}")
        with _HTTP.open(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def refused(self, auth: str | None) -> int:
        """The status with which these credentials are answered; 200 when they are not refused."""
        try:
            self.ask("POST", "/flow_runs/count", {}, auth)
        except urllib.error.HTTPError as e:
            return e.code
        return 200

    def runs(self, **filters: Any) -> Sequence[Any]:
        found = self.ask("POST", "/flow_runs/filter", {"flow_runs": filters, "limit": 200})
        return list(found)

    def remove(self) -> None:
        """Everything of this stack, whatever state it is in."""
        for container in self.child_containers():
            container.remove(force=True)
        self("down", "--volumes", "--timeout", "5", check=False)
        for container in self.containers():
            container.remove(force=True)
