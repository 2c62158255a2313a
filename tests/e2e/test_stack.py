"""The embedded stack on the real thing: it starts, serves, deploys, and leaves no process however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.workers.process import ProcessWorker

from orchestrator.errors import ConfigurationError
from orchestrator.stack import Stack, StackError
from orchestrator.stack.processes import marked
from orchestrator.stack.template import process_template
from tests.support import eventually


def test_the_pool_template_is_prefects_own_but_for_the_command() -> None:
    prefects, ours = ProcessWorker.get_default_base_job_template(), process_template("run it")

    def essence(template: dict) -> dict:
        properties = template["variables"]["properties"]
        return {n: {k: v for k, v in p.items() if k not in ("description", "title")} for n, p in properties.items()}

    assert ours["job_configuration"] == prefects["job_configuration"]
    changed = essence(ours)
    assert changed["command"].pop("default") == "run it"
    assert changed["command"] | {"default": None} == essence(prefects)["command"]
    assert {**changed, "command": None} == {**essence(prefects), "command": None}


async def test_a_client_in_this_process_reaches_the_stack_and_no_other(stack: Stack) -> None:
    async with get_client() as client:
        assert str(client.api_url).startswith(stack.api_url)
        pool = await client.read_work_pool(stack.pool)
    assert pool.type == "process"


FLOW = """
import os, time
from prefect import flow

@flow
def hello(seconds: float = 0):
    open(os.path.join(os.environ["PREFECT_HOME"], "started"), "w").write(str(os.getpid()))
    time.sleep(seconds)
"""

PREFECT_YAML = """
deployments:
- name: one
  entrypoint: flows_of_test.py:hello
  work_pool: {name: test-pool}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "flows_of_test.py").write_text(FLOW)
    (tmp_path / "prefect.yaml").write_text(PREFECT_YAML)
    return tmp_path


def run_hello(stack: Stack, seconds: float) -> str:
    deployment = stack.request("GET", "/deployments/name/hello/one")
    run = stack.request(
        "POST", f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {"seconds": seconds}}
    )
    return run["id"]


def state_of(stack: Stack, run: str) -> str:
    return stack.request("GET", f"/flow_runs/{run}")["state"]["type"]


def test_a_deployment_from_a_prefect_yaml_runs(session_stack: Stack, project: Path) -> None:
    session_stack.deploy(project / "prefect.yaml")
    run = run_hello(session_stack, 0)
    eventually(lambda: state_of(session_stack, run) == "COMPLETED", 60, "the run completed")


def test_of_a_prefect_yaml_the_named_deployments_alone_are_deployed(session_stack: Stack, project: Path) -> None:
    other = PREFECT_YAML.partition("deployments:\n")[2].replace("name: one", "name: only")
    assert "name: only" in other
    second = other.replace("flows_of_test.py:hello", "flows_of_test.py:nobody")
    (project / "prefect.yaml").write_text(PREFECT_YAML + other + second)
    session_stack.deploy(project / "prefect.yaml", "hello/only")
    (step,) = session_stack.request("GET", "/deployments/name/hello/only")["pull_steps"]
    assert step["prefect.deployments.steps.set_working_directory"]["directory"] == str(project)
    with pytest.raises(StackError, match="no deployment hello/none"):
        session_stack.deploy(project / "prefect.yaml", "hello/none")


def test_a_prefect_yaml_that_cannot_be_deployed_says_why(session_stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").write_text(PREFECT_YAML.replace("flows_of_test", "nowhere"))
    with pytest.raises(StackError, match=r"nowhere\.py"):
        session_stack.deploy(tmp_path / "prefect.yaml")


def test_stop_ends_a_run_whose_worker_was_killed_and_leaves_nothing(
    stack_factory: Callable[..., Stack], project: Path
) -> None:
    stack = stack_factory(stop_seconds=3)
    stack.deploy(project / "prefect.yaml")
    run_hello(stack, 600)
    pid = int(eventually(lambda: _read(stack.home / "started"), 60, "the run started"))
    stack.kill_worker(stack.workers[0])
    assert pid in stack.processes()

    stack.stop()

    assert stack.processes() == []


def test_the_server_can_die_and_come_back_on_the_same_port_with_its_data(stack_factory: Callable[..., Stack]) -> None:
    stack = stack_factory(workers=0)
    stack.create_pool("kept", limit=3)
    url = stack.api_url

    stack.kill_server()
    with pytest.raises(StackError):
        stack.request("GET", "/health")
    stack.start_server()

    assert stack.api_url == url
    assert stack.request("GET", "/work_pools/kept")["concurrency_limit"] == 3


@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_no_process_outlives_the_one_that_started_the_stack(how: signal.Signals, tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import json, signal, sys
        from pathlib import Path
        from orchestrator.stack import Stack
        with Stack(Path(sys.argv[1])) as stack:
            print(json.dumps({"mark": stack._mark, "pids": stack.processes()}), flush=True)
            signal.pause()
        """
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "home")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert starter.stdout
    facts = json.loads(starter.stdout.readline())
    assert len(facts["pids"]) == 2

    starter.send_signal(how)
    starter.communicate(timeout=60)

    eventually(lambda: not marked(facts["mark"]), 30, "every process of the stack was gone")


def test_a_second_stack_in_the_same_home_is_refused_with_the_remedy(session_stack: Stack) -> None:
    with pytest.raises(ConfigurationError, match=r"already runs .* --stop"):
        Stack(session_stack.home).start()
    assert session_stack.request("GET", "/health") is True


def test_a_taken_port_is_refused(session_stack: Stack, tmp_path: Path) -> None:
    port = int(session_stack.ui_url.rsplit(":", 1)[1])
    with pytest.raises(ConfigurationError, match=f"port {port} is in use"):
        Stack(tmp_path, port).start()


def test_a_stack_left_running_is_stopped_by_its_home(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from orchestrator.stack import Stack
stack = Stack(Path(sys.argv[1]), workers=0)
stack.start()
stack.release()
stack.stop()  # does nothing any more
print(stack.api_url)
"""
    starter = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    with urllib.request.urlopen(starter.stdout.strip() + "/health", timeout=10) as answer:
        assert answer.read() == b"true"

    assert Stack.stop_left(tmp_path) == 1

    with pytest.raises(ConfigurationError, match="no stack"):
        Stack.stop_left(tmp_path)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def test_the_environment_of_a_stack_holds_nothing_of_the_users_prefect(
    session_stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "secret")
    monkeypatch.setenv("PREFECT_PROFILE", "production")
    environment = session_stack.environment
    assert "PREFECT_API_KEY" not in environment
    assert "PREFECT_PROFILE" not in environment
    assert os.environ["PREFECT_API_KEY"] == "secret"
