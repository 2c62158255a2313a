"""Whole jobs with child runs in containers: results, failures, the window, nothing left."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from orchestrator import Report
from orchestrator.stack import Stack
from orchestrator.stack.containers import COMMAND
from tests.containers.engine import Engine
from tests.containers.jobs import ContainerJob, deploy_in_containers
from tests.integration import job_flows
from tests.integration.job_support import MARKS, await_end, check, deploy_parent, set_state, start
from tests.support import eventually

pytestmark = MARKS
LONG = 300.0


def form(deployment: str, job: ContainerJob, what: list[Any], **more: Any) -> dict[str, Any]:
    """What a person fills into the parent's form."""
    return {
        "deployment": deployment, "items": {"kind": "inline", "items": what}, "parameters": job.parameters,
        "advanced": job.advanced, "max_in_flight": 2, **more,
    }  # fmt: skip


def report_of(job: ContainerJob) -> Report:
    return Report.from_json(job.folder.read_report() or {})


def test_a_parent_process_has_its_items_done_in_containers(
    stack: Stack, job: ContainerJob, work_in_containers: str
) -> None:
    """Three batches, two containers at once, one item that fails: all told by the process that never saw them."""
    what = [{"n": n, "seconds": 0.2} for n in range(6)]
    what[3]["fail"] = "ValueError"
    parent = start(
        stack, form(work_in_containers, job, what, batch_size=2, kill_switch=None), deployment=deploy_parent("process")
    )
    run = await_end(stack, parent, LONG)
    assert (run["state_type"], run["state"]["name"]) == ("FAILED", "Failed"), run["state"]
    assert "1 of 6 items failed" in run["state"]["message"]
    report = report_of(job)
    check(job, report, max_in_flight=2)
    assert job.most_containers_at_once() == 2
    assert [o.result for o in job.outcomes()] == [0, 1, 2, None, 4, 5]
    assert [(error.type, error.count) for error in report.errors] == [("ValueError", 1)]
    failed = job.outcomes()[3]
    assert (failed.error_type, failed.error_text) == ("ValueError", "item 3 is bad")
    states = [child["state"]["name"] for child in job.children()]
    assert sorted(states) == ["Completed", "Completed", "CompletedWithFailures"]
    assert [ran.code for ran in job.history()] == [0, 0, 0]
    job.engine.nothing_left()
    said = subprocess.run(
        [sys.executable, "-m", "orchestrator", "results", job.job, "--storage", job.storage, "--json"],
        env=stack.environment, capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    assert [json.loads(line)["result"] for line in said.splitlines()] == [0, 1, 2, 4, 5]


def test_a_container_may_do_what_its_run_needs_and_nothing_else(
    stack: Stack, job: ContainerJob, work_in_containers: str
) -> None:
    gate = job.home / "gate"
    parent = start(
        stack, form(work_in_containers, job, [{"n": 0, "gate": str(gate)}]), deployment=deploy_parent("process")
    )
    try:
        job.wait_until_started(1, LONG)
        (container,) = job.containers()
        container.reload()
        config, host = container.attrs["Config"], container.attrs["HostConfig"]
        assert " ".join(config["Cmd"]) == COMMAND
        assert (host["ReadonlyRootfs"], host["CapDrop"], host["Privileged"]) == (True, ["ALL"], False)
        assert (host["Init"], host["PidsLimit"], host["AutoRemove"]) == (True, 512, True)
        assert (host["Memory"], host["MemorySwap"]) == (1 << 30, 1 << 30)
        assert "no-new-privileges" in host["SecurityOpt"]
        assert list(host["Tmpfs"]) == ["/tmp"]
        variables = dict(entry.split("=", 1) for entry in config["Env"])
        assert variables["PREFECT_HOME"] == "/tmp/prefect"
        assert not [name for name, value in variables.items() if str(stack.home) in value
                    and name != "ORCHESTRATOR_STORAGE"]  # fmt: skip
    finally:
        gate.touch()
    assert await_end(stack, parent, LONG)["state_type"] == "COMPLETED"
    eventually(lambda: not job.containers(), 60, "the container is gone")


@pytest.fixture(scope="module")
def plain_in_containers(container_stack: Stack) -> str:
    """A flow that is no batch flow."""
    with container_stack.activated():
        return deploy_in_containers(job_flows.takes_one, "takes_one")


def run_plain(stack: Stack, deployment: str, job: ContainerJob, item: dict[str, Any]) -> str:
    return start(stack, {"video": item, "trace": str(job.trace_folder)}, deployment=deployment)


def test_a_run_in_a_container_that_knows_nothing_of_us_is_cancelled_by_prefect(
    stack: Stack, job: ContainerJob, plain_in_containers: str
) -> None:
    """No worker watches a container's run: what our command starts there has to."""
    run = run_plain(stack, plain_in_containers, job, {"n": 0, "seconds": 300})
    job.wait_until_started(1, LONG)
    set_state(stack, run, "CANCELLING", "Cancelling")
    assert await_end(stack, run, 60)["state_type"] == "CANCELLED"
    eventually(lambda: not job.engine.of_run(run), 60, "the container is gone")


def test_a_run_cancelled_while_its_container_comes_up_ends_there(
    stack: Stack, job: ContainerJob, plain_in_containers: str, flow_image: str, docker_engine: Engine
) -> None:
    """The test itself is the worker: the run is being cancelled before its container looks."""
    found = stack.request("GET", f"/deployments/name/{plain_in_containers}")
    wanted = {"parameters": {"video": {"n": 0}, "trace": str(job.trace_folder)}, "state": {"type": "PENDING"}}
    run = stack.request("POST", f"/deployments/{found['id']}/create_flow_run", wanted)["id"]
    set_state(stack, run, "PENDING", "Pending")
    set_state(stack, run, "CANCELLING", "Cancelling")
    settings = {"PREFECT_API_URL": stack.api_url, "PREFECT__FLOW_RUN_ID": run}
    docker_engine.run(flow_image, COMMAND.split(), environment=settings)
    assert stack.request("GET", f"/flow_runs/{run}")["state_type"] == "CANCELLED"
    assert job.trace() == []
