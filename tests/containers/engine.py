"""A Docker engine, as tests with real containers use it: found or missed, an image of this checkout, what ran when.

All of them share one engine with whoever else is on the machine: containers are found by label, never all at once,
and every container that a test starts has the session's label, by which it is removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from docker.utils.build import exclude_paths

import docker
from orchestrator.stack.containers import IMAGE
from tests.support import eventually

ROOT = Path(__file__).parents[2]
DOCKERFILE = "docker/Dockerfile"
REQUIRED = "ORCHESTRATOR_REQUIRE_DOCKER"
"""Set it to 1 where a missing engine must fail the tests instead of skipping them."""
TEST_LABEL = "io.prefect-batch-orchestrator.test"
SOURCES_LABEL = "io.prefect-batch-orchestrator.sources"
RUN_LABEL = "io.prefect.flow-run-id"
BUILD_SECONDS = 900


def missing(reason: str) -> None:
    """Skip, or fail where an engine is required."""
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True)
class Ran:
    """One container, from its start to its end as the engine saw them.

    Args:
        began, ended: Epoch seconds; `ended` is None while it runs.
        code: Its exit code.
    """

    id: str
    labels: dict[str, str]
    began: float
    ended: float | None
    code: int | None

    @property
    def run(self) -> str:
        """The flow run it was for."""
        return self.labels.get(RUN_LABEL, "")


class Engine:
    """The engine that answers, and what this session started on it.

    Args:
        session: Value of `TEST_LABEL` on all of it.
    """

    def __init__(self, session: str) -> None:
        self.session = session
        self.client = docker.from_env(timeout=120)
        self._ran: dict[str, Ran] = {}
        self._events: Any = None

    @property
    def labels(self) -> dict[str, str]:
        return {TEST_LABEL: self.session}

    def run(self, image: str, command: list[str], **options: Any) -> str:
        """Run a container to its end, as our work pools start them; what it printed.

        Raises:
            docker.errors.ContainerError: it ended with another code than 0.
        """
        settings = {
            "network_mode": "host", "read_only": True, "tmpfs": {"/tmp": "size=256m,mode=1777"}, "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"], "init": True, "remove": True, "stderr": True,
            "labels": self.labels, **options,
        }  # fmt: skip
        return bytes(self.client.containers.run(image, command, **settings)).decode()

    def containers(self, **labels: str) -> list[Any]:
        """This session's containers that are there, ended ones included."""
        wanted = [f"{name}={value}" for name, value in (self.labels | labels).items()]
        return list(self.client.containers.list(all=True, filters={"label": wanted}, ignore_removed=True))

    def of_run(self, run_id: str) -> list[Any]:
        return self.containers(**{RUN_LABEL: run_id})

    def follow(self) -> None:
        """Write down from now on what is started and ends: the engine itself remembers its last 256 events only."""
        wanted = {"label": f"{TEST_LABEL}={self.session}", "type": "container", "event": ["start", "die"]}
        self._events = self.client.events(filters=wanted, decode=True)
        threading.Thread(target=self._note_events, daemon=True).start()

    def _note_events(self) -> None:
        for event in self._events:
            id_, at, attributes = event["Actor"]["ID"], event["timeNano"] / 1e9, event["Actor"]["Attributes"]
            if event["Action"] == "start":
                self._ran[id_] = Ran(id_, attributes, at, None, None)
            elif id_ in self._ran:
                began = self._ran[id_]
                self._ran[id_] = Ran(id_, began.labels, began.began, at, int(attributes.get("exitCode", -1)))

    def history(self) -> list[Ran]:
        """This session's containers that were started, gone ones included, by their start."""
        return sorted(self._ran.copy().values(), key=lambda ran: ran.began)

    def nothing_left(self, deadline_seconds: float = 60, **labels: str) -> None:
        eventually(lambda: not self.containers(**labels), deadline_seconds, f"no container with {labels} is left")

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
        for container in self.containers():
            try:
                container.remove(force=True)
            except docker.errors.APIError:
                pass  # it is going already
        self.client.close()


def find_engine(session: str) -> Engine:
    """The engine that `DOCKER_HOST` names, or the one of this machine; skips or fails where none answers."""
    try:
        engine = Engine(session)
        engine.client.ping()
        engine.follow()
    except (docker.errors.DockerException, OSError) as e:
        missing(f"no Docker engine answers: {e}")
        raise
    return engine


def program() -> str:
    """The docker command; `DOCKER` names another."""
    found = os.environ.get("DOCKER") or shutil.which("docker")
    if not found:
        missing("there is no docker command")
    return str(found)


def sources(folder: Path = ROOT) -> list[str]:
    """Files that a build sees, relative to the folder: those that `.dockerignore` lets through."""
    patterns = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line.strip() and not line.startswith("#")
    ]
    return sorted(name for name in exclude_paths(str(folder), patterns) if (folder / name).is_file())


def fingerprint() -> str:
    """Changes when anything changes that the image is made from."""
    whole = hashlib.sha256()
    for name in [DOCKERFILE, ".dockerignore", *sources()]:
        whole.update(f"{name}\0".encode() + hashlib.sha256((ROOT / name).read_bytes()).digest())
    return whole.hexdigest()[:32]


def build(engine: Engine, tag: str = IMAGE) -> str:
    """Build the image of this checkout under its tag, unless it is there; one build at a time on the machine.

    With the builder that has no BuildKit, which is what Prefect's own image builds use (docker-py), and the host's
    network, for engines without one of their own.
    """
    with _alone():
        wanted = fingerprint()
        try:
            if engine.client.images.get(tag).labels.get(SOURCES_LABEL) == wanted:
                return tag
        except docker.errors.ImageNotFound:
            pass
        done = subprocess.run(
            [program(), "build", "--network", "host", "--label", f"{SOURCES_LABEL}={wanted}", "-f", DOCKERFILE,
             "-t", tag, "."],
            cwd=ROOT, env={**os.environ, "DOCKER_BUILDKIT": "0"}, capture_output=True, text=True,
            timeout=BUILD_SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return tag


@contextmanager
def _alone() -> Iterator[None]:
    with open(Path(tempfile.gettempdir()) / "prefect-batch-orchestrator-build.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
