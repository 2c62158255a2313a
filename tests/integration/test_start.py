"""A child's process looks at its own run first: one that was cancelled while Pending finalises itself at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from orchestrator.stack import Stack
from tests.support import eventually

SLOW_TO_LOAD = """
import time
from pathlib import Path
Path({mark!r}).write_text("loading")
time.sleep(3)
from prefect import flow

@flow
def slow_to_load():
    Path({mark!r}).write_text("ran")
"""


@pytest.fixture
def deployment(session_stack: Stack, tmp_path: Path) -> tuple[str, Path]:
    """A deployment (without a pool: the test itself is the worker) of a flow whose module takes long to load."""
    mark = tmp_path / "mark"
    (tmp_path / "slow.py").write_text(SLOW_TO_LOAD.format(mark=str(mark)))
    flow = session_stack.request("POST", "/flows/", {"name": "slow-to-load"})
    entry = {
        "name": f"start-{tmp_path.name}",
        "flow_id": flow["id"],
        "entrypoint": "slow.py:slow_to_load",
        "path": str(tmp_path),
        "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path)}}],
    }
    return session_stack.request("POST", "/deployments/", entry)["id"], mark


def pending_run(stack: Stack, deployment: str) -> str:
    run = stack.request("POST", f"/deployments/{deployment}/create_flow_run", {})
    set_state(stack, run["id"], "PENDING")
    return str(run["id"])


def set_state(stack: Stack, run: str, kind: str) -> None:
    stack.request("POST", f"/flow_runs/{run}/set_state", {"state": {"type": kind}, "force": False})


def state(stack: Stack, run: str) -> str:
    return str(stack.request("GET", f"/flow_runs/{run}")["state"]["type"])


def started(stack: Stack, run: str, *how: str, folder: Path | None = None, **more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, **stack.environment, "PREFECT__FLOW_RUN_ID": run, **more}
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.start", *how], env=environment, cwd=folder, text=True,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_run_cancelled_while_pending_ends_as_cancelled_and_loads_nothing(
    session_stack: Stack, deployment: tuple[str, Path]
):
    run = pending_run(session_stack, deployment[0])
    set_state(session_stack, run, "CANCELLING")
    process = started(session_stack, run)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert state(session_stack, run) == "CANCELLED"
    assert not deployment[1].exists()


@pytest.mark.parametrize(("how", "seconds"), [([], 60), (["--supervised"], 90)], ids=["by a worker", "supervised"])
def test_a_run_cancelled_while_its_flow_is_loaded_ends_as_cancelled(
    session_stack: Stack, deployment: tuple[str, Path], how: list[str], seconds: int
):
    run = pending_run(session_stack, deployment[0])
    process = started(session_stack, run, *how)
    eventually(deployment[1].exists, seconds, "the flow's module is being loaded")
    set_state(session_stack, run, "CANCELLING")
    process.communicate(timeout=seconds)
    assert state(session_stack, run) == "CANCELLED"
    assert deployment[1].read_text() == "loading"


def test_a_run_that_was_cancelled_before_does_not_come_back_to_life(session_stack: Stack, deployment: tuple[str, Path]):
    run = pending_run(session_stack, deployment[0])
    set_state(session_stack, run, "CANCELLED")
    process = started(session_stack, run)
    process.communicate(timeout=60)
    assert state(session_stack, run) == "CANCELLED"
    assert not deployment[1].exists()


def test_any_other_run_runs_as_always(session_stack: Stack, deployment: tuple[str, Path]):
    run = pending_run(session_stack, deployment[0])
    process = started(session_stack, run)
    process.communicate(timeout=90)
    assert process.returncode == 0
    assert state(session_stack, run) == "COMPLETED"
    assert deployment[1].read_text() == "ran"


def test_a_flow_that_deploy_left_in_the_image_is_found_there(session_stack: Stack, tmp_path: Path):
    """`.deploy(image=...)` registers the folder in which the container starts, as `.`, and nothing to fetch."""
    (tmp_path / "words.py").write_text("from prefect import flow\n\n@flow\ndef words():\n    return 3\n")
    flow = session_stack.request("POST", "/flows/", {"name": "words"})
    entry = {"name": f"image-{tmp_path.name}", "flow_id": flow["id"], "entrypoint": "words.py:words", "path": "."}
    run = pending_run(session_stack, session_stack.request("POST", "/deployments/", entry)["id"])
    process = started(session_stack, run, "--supervised", folder=tmp_path)
    process.communicate(timeout=120)
    assert (process.returncode, state(session_stack, run)) == (0, "COMPLETED")


def test_without_an_api_prefects_engine_is_asked_as_always(tmp_path: Path):
    environment = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT__FLOW_RUN_ID": "not-an-id"}
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.start"], env=environment, capture_output=True, text=True, timeout=90
    )
    assert done.returncode != 0
    assert "could not be looked at" in done.stderr


# ---------------------------------------------------------------------- where no worker is beside the process


WORKS = """
import os, time
from pathlib import Path
from prefect import flow

@flow
def slow_to_load():
    Path({mark!r}).write_text(str(os.getpid()))
    time.sleep(300)
"""


@pytest.fixture
def at_work(deployment: tuple[str, Path]) -> tuple[str, Path]:
    """The same deployment, of a flow that works for long."""
    mark = deployment[1]
    (mark.parent / "slow.py").write_text(WORKS.format(mark=str(mark)))
    return deployment


def test_a_supervised_run_runs_and_ends_as_always(session_stack: Stack, deployment: tuple[str, Path]):
    run = pending_run(session_stack, deployment[0])
    process = started(session_stack, run, "--supervised")
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert (state(session_stack, run), deployment[1].read_text()) == ("COMPLETED", "ran")


def test_a_supervised_run_that_is_cancelled_ends_with_its_process(
    session_stack: Stack, at_work: tuple[str, Path]
) -> None:
    run = pending_run(session_stack, at_work[0])
    process = started(session_stack, run, "--supervised")
    eventually(at_work[1].exists, 90, "the flow runs")
    set_state(session_stack, run, "CANCELLING")
    process.communicate(timeout=90)
    assert state(session_stack, run) == "CANCELLED"
    assert not psutil.pid_exists(int(at_work[1].read_text()))


def test_the_death_of_a_supervised_run_is_told(session_stack: Stack, at_work: tuple[str, Path]) -> None:
    run = pending_run(session_stack, at_work[0])
    process = started(session_stack, run, "--supervised")
    eventually(lambda: at_work[1].exists() and at_work[1].read_text(), 90, "the flow runs")
    os.kill(int(at_work[1].read_text()), signal.SIGKILL)
    process.communicate(timeout=90)
    assert state(session_stack, run) == "CRASHED"


def test_a_supervised_run_is_scheduled_again_at_a_sigterm_where_the_pool_wants_that(
    session_stack: Stack, at_work: tuple[str, Path]
) -> None:
    run = pending_run(session_stack, at_work[0])
    process = started(session_stack, run, "--supervised", PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR="reschedule")
    eventually(lambda: at_work[1].exists() and at_work[1].read_text(), 90, "the flow runs")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=90)
    assert process.returncode == 0
    assert state(session_stack, run) == "SCHEDULED"
    assert not psutil.pid_exists(int(at_work[1].read_text()))
