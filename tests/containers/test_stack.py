"""A stack with a docker pool leaves no container, however it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ConfigurationError
from orchestrator.stack import DockerPool, Stack
from orchestrator.stack.containers import STACK_LABEL
from tests.containers.engine import ROOT, Engine
from tests.containers.jobs import deploy_in_containers
from tests.integration import job_flows
from tests.integration.job_support import start
from tests.support import eventually

PROGRAM = """
import json, sys, time
from pathlib import Path
from orchestrator.stack import DockerPool, Stack

options = json.loads(sys.argv[1])
with Stack(Path(options["home"]), workers=0, docker=DockerPool(**options["pool"]), start_seconds=240) as stack:
    print(json.dumps({"api_url": stack.api_url}), flush=True)
    time.sleep(600)
"""


@contextmanager
def somebody_elses(home: Path, pool: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """A program that holds a stack."""
    options = json.dumps({"home": str(home), "pool": pool})
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, options], cwd=ROOT, text=True, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_killed_stack_takes_its_containers_with_it(docker_engine: Engine, flow_image: str, tmp_path: Path) -> None:
    home, gate, tests = tmp_path / "stack", tmp_path / "gate", ROOT / "tests"
    volumes = [f"{tmp_path}:{tmp_path}", f"{tests}:{tests}:ro"]
    pool = {"image": flow_image, "labels": docker_engine.labels, "volumes": volumes}
    with somebody_elses(home, pool) as process:
        assert process.stdout is not None
        api = json.loads(process.stdout.readline())["api_url"]
        stack = Stack(home)  # not started: a client of the one that runs
        stack._server.port = int(api.rpartition(":")[2].partition("/")[0])
        with stack.activated():
            deployed = deploy_in_containers(job_flows.takes_one, "takes_one")
            item = {"n": 0, "gate": str(gate)}
            run = start(stack, {"video": item, "trace": str(tmp_path)}, deployment=deployed)
        eventually(lambda: (tmp_path / job_flows.TRACE).exists(), 300, "the run works in its container")
        (container,) = docker_engine.of_run(run)
        assert STACK_LABEL in container.labels
        process.send_signal(signal.SIGKILL)
        eventually(lambda: not docker_engine.of_run(run), 120, "the container is gone")


def test_a_stack_wants_the_image_before_it_starts(docker_engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match="no image nobody/has-this:1; docker pull nobody/has-this:1"
    ) as refused:
        Stack(tmp_path / "home", docker=DockerPool(image="nobody/has-this:1")).start()
    assert refused.value.field == "image"
    assert not (tmp_path / "home").exists()
