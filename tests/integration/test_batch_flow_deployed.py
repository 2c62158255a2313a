"""Batch flows of a project outside this repository, deployed each way, in real child processes of a real worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any
from uuid import uuid4

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelling

from orchestrator.core.model import EndReason, StopCause, StopMode, StopRecord
from orchestrator.stack import Stack
from tests.prefect_stack import POOL
from tests.support import eventually
from tests.unit.batchrun.jobs import StagedJob

pytestmark = pytest.mark.usefixtures("stack")

PROJECT = """
    import asyncio
    import os
    import time

    from orchestrator.flows import ItemContext, batch_flow
    from prefect import task


    def clean(item: int, context: ItemContext, *, factor: int = 1) -> dict:
        return {"value": item * factor, "job": context.job}


    cleaning = batch_flow(clean, item_concurrency=2)


    @batch_flow
    async def fetching(item: int, *, factor: int = 1):
        await asyncio.sleep(0)
        return {"value": item * factor}


    @batch_flow(item_concurrency=2, executor="processes")
    def heavy(item: int, *, factor: int = 1):
        return {"value": item * factor, "pid": os.getpid()}


    @batch_flow
    def hangs(item: int):
        time.sleep(0 if item < 2 else 3600)


    @batch_flow
    async def blocks(item: int):
        time.sleep(0 if item < 2 else 3600)


    @task
    def step(item: int):
        time.sleep(0 if item < 2 else 3600)


    hanging_tasks = batch_flow(step, name="hanging-tasks")


    @batch_flow
    def dies(item: int):
        if item == 2:
            os._exit(137)
        return item


    if __name__ == "__main__":
        cleaning.serve(name="served")
"""

YAML = """
    name: project
    pull:
      - prefect.deployments.steps.set_working_directory:
          directory: "{folder}"
    deployments:
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outside")
    (folder / "work.py").write_text(dedent(PROJECT))
    yaml = dedent(YAML).format(folder=folder)
    for variable in ("cleaning", "fetching", "heavy", "hangs", "blocks", "hanging_tasks", "dies"):
        yaml += f"  - name: by-yaml\n    entrypoint: work.py:{variable}\n    work_pool: {{name: {POOL}}}\n"
    (folder / "prefect.yaml").write_text(yaml)
    return folder


@pytest.fixture(scope="module")
def deployed(project: Path, session_stack: Stack) -> Path:
    session_stack.deploy(project / "prefect.yaml")
    return project


def start(deployment: str, job: StagedJob, **parameters: Any) -> FlowRun:
    with get_client(sync_client=True) as client:
        found = client.read_deployment_by_name(deployment)
        given = {"batch": job.reference().to_json(), **parameters}
        return client.create_flow_run_from_deployment(found.id, parameters=given, idempotency_key=str(uuid4()))


def read(run: FlowRun) -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run.id)


def finished(run: FlowRun, seconds: float = 60) -> FlowRun:
    def is_final() -> FlowRun | None:
        now = read(run)
        return now if now.state is not None and now.state.is_final() else None

    got = eventually(is_final, seconds, f"{run.name} to end")
    assert got is not None
    return got


def processes_of(run: FlowRun) -> list[psutil.Process]:
    """Processes that Prefect started for that run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT__FLOW_RUN_ID") == str(run.id) and process.status() != "zombie":
                found.append(process)
        except psutil.Error:
            continue
    return found


def gone(run: FlowRun, seconds: float) -> None:
    eventually(lambda: not processes_of(run), seconds, f"the process of {run.name} to be gone")


def stop(job: StagedJob) -> None:
    job.folder.request_stop(StopRecord(StopMode.CANCEL, StopCause.TRIPPED, "too many failures", "kill switch"))


# ---------------------------------------------------------------------- each way of deploying


def test_prefect_deploy_of_sync_async_and_process_flows(deployed: Path, tmp_path: Path) -> None:
    jobs = {name: StagedJob(tmp_path / name, [1, 2, 3], lease_seconds=120) for name in ("clean", "fetching", "heavy")}
    runs = {name: start(f"{name}/by-yaml", job, factor=10) for name, job in jobs.items()}
    for name, run in runs.items():
        state = finished(run).state
        assert state is not None
        assert (name, state.type, state.message) == (name, StateType.COMPLETED, "3 succeeded of 3 items")
        assert [record.result["value"] for record in jobs[name].folder.outcomes()] == [10, 20, 30]
    with get_client(sync_client=True) as client:
        schema = client.read_deployment_by_name("clean/by-yaml").parameter_openapi_schema
    assert schema is not None
    assert list(schema["properties"]) == ["batch", "items", "factor"]


def test_deploy_in_python_from_a_source_and_from_where_it_is(project: Path, tmp_path: Path) -> None:
    script = dedent(f"""
        from pathlib import Path
        from prefect import flow
        from work import cleaning
        here = str(Path(__file__).parent)
        flow.from_source(source=here, entrypoint="work.py:cleaning").deploy(
            name="from-source", work_pool_name={POOL!r}, build=False, push=False, print_next_steps=False)
        cleaning.from_source(source=here, entrypoint="work.py:cleaning").to_deployment(name="made")
        print(cleaning.to_deployment(name="x").entrypoint)
    """)
    (project / "deploy.py").write_text(script)
    done = subprocess.run([sys.executable, "deploy.py"], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "work.py:cleaning"
    job = StagedJob(tmp_path / "job", [1, 2], lease_seconds=120)
    state = finished(start("clean/from-source", job, factor=3)).state
    assert state is not None
    assert state.type == StateType.COMPLETED, state.message
    assert [record.result["value"] for record in job.folder.outcomes()] == [3, 6]


def test_deploy_into_an_image_names_the_users_file(project: Path) -> None:
    """`.deploy(image=...)` with the code in the image: registered without building it."""
    template = {
        "job_configuration": {"image": "{{ image }}", "env": "{{ env }}"},
        "variables": {"type": "object", "properties": {"image": {"type": "string"}, "env": {"type": "object"}}},
    }
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="images", type="docker", base_job_template=template))
    script = dedent("""
        from work import cleaning
        cleaning.deploy(name="in-image", work_pool_name="images", image="example/image:1", build=False, push=False,
                        print_next_steps=False)
    """)
    (project / "deploy_image.py").write_text(script)
    done = subprocess.run([sys.executable, "deploy_image.py"], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with get_client(sync_client=True) as client:
        assert client.read_deployment_by_name("clean/in-image").entrypoint == "work.py:cleaning"


@pytest.fixture
def served(project: Path, stack: Stack) -> Iterator[None]:
    # From Popen, in a group of its own: `serve` starts its runs as children.
    process = subprocess.Popen([sys.executable, "work.py"], cwd=project, start_new_session=True,
                               env={**os.environ, "PREFECT_RUNNER_POLL_FREQUENCY": "1"},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip

    def registered() -> bool:
        with get_client(sync_client=True) as client:
            return any(deployment.name == "served" for deployment in client.read_deployments())

    try:
        eventually(registered, 30, "the served deployment to be there")
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.usefixtures("served")
def test_serve_from_its_own_file(tmp_path: Path) -> None:
    job = StagedJob(tmp_path, [1, 2], lease_seconds=120)
    state = finished(start("clean/served", job, factor=5)).state
    assert state is not None
    assert state.type == StateType.COMPLETED, state.message
    assert [record.result["value"] for record in job.folder.outcomes()] == [5, 10]


# ---------------------------------------------------------------------- ends that are not by the function


@pytest.mark.usefixtures("deployed")
def test_a_stopped_child_ends_its_process_whatever_hangs_in_it(tmp_path: Path) -> None:
    """A hung function, a hung task and a blocked loop: each child is over soon after the grace."""
    names = ("hangs", "blocks", "hanging-tasks")
    jobs = {name: StagedJob(tmp_path / name, list(range(5)), lease_seconds=120) for name in names}
    runs = {name: start(f"{name}/by-yaml", job) for name, job in jobs.items()}
    for name, job in jobs.items():
        eventually(lambda job=job: job.outcomes()[:2] == ["succeeded"] * 2, 60, f"two items of {name}")
    asked = time.monotonic()
    for job in jobs.values():
        stop(job)
    for name, run in runs.items():
        state = finished(run, 30).state
        assert state is not None
        assert (name, state.type, state.name) == (name, StateType.CANCELLED, "Stopped")
        assert "2 succeeded, 3 not finished of 5 items: too many failures" in str(state.message)
        assert jobs[name].outcomes() == ["succeeded"] * 2 + ["unknown"] + ["not_started"] * 2
        end = jobs[name].folder.read_end(0, 0)
        assert end is not None
        assert (end.reason, end.in_progress) == (EndReason.STOPPED, (2,))
    for run in runs.values():
        gone(run, 25 - (time.monotonic() - asked))
        state = read(run).state
        assert state is not None
        assert state.name == "Stopped"  # the end of the process did not make it a crash


@pytest.mark.usefixtures("deployed")
def test_a_child_that_is_cancelled_or_dies_keeps_what_it_did(tmp_path: Path) -> None:
    names = ("hangs", "dies")
    jobs = {name: StagedJob(tmp_path / name, list(range(5)), lease_seconds=120) for name in names}
    runs = {name: start(f"{name}/by-yaml", job) for name, job in jobs.items()}
    for name, job in jobs.items():
        eventually(lambda job=job: job.outcomes()[:2] == ["succeeded"] * 2, 60, f"two items of {name}")

    with get_client(sync_client=True) as client:
        client.set_flow_run_state(runs["hangs"].id, Cancelling())
    state = finished(runs["hangs"]).state
    assert state is not None
    assert state.type == StateType.CANCELLED
    end = jobs["hangs"].folder.read_end(0, 0)
    assert end is not None
    assert (end.reason, end.in_progress) == (EndReason.TERMINATED, (2,))
    gone(runs["hangs"], 20)

    state = finished(runs["dies"]).state
    assert state is not None
    assert state.type == StateType.CRASHED
    assert jobs["dies"].folder.read_end(0, 0) is None
    reading = jobs["dies"].folder.close_attempt(0, 5, 0)
    assert (reading.counts.succeeded, reading.unknown, reading.ended) == (2, 3, False)
