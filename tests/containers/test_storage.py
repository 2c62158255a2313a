"""The job folder on both sides of a container's wall: blocks, mixed jobs, and a folder that one side does not reach."""

from __future__ import annotations

import json
import secrets
from typing import Any

import pytest
from prefect.filesystems import RemoteFileSystem

from orchestrator import Report, orchestrate_sync
from orchestrator.stack import Stack
from tests.containers.jobs import DOCKER_POOL, ContainerJob, deploy_in_containers
from tests.integration import job_flows
from tests.integration.job_support import (
    MARKS,
    await_end,
    check,
    check_cut_off,
    deploy_parent,
    deploy_work,
    in_background,
    items,
    start,
)
from tests.s3server import S3Server

pytestmark = MARKS
LONG = 300.0
KEY, SECRET = "AKIABLOCKJOBS77XQ", "wJalrXUt-block-secret-9f3b"


@pytest.fixture
def work(stack: Stack) -> str:
    """The tests' batch flow, its runs as processes."""
    return deploy_work()


def volumes_of(stack: Stack) -> list[str]:
    """What the docker pool's containers mount unless a deployment says otherwise."""
    template = stack.request("GET", f"/work_pools/{DOCKER_POOL}")["base_job_template"]
    return list(template["variables"]["properties"]["volumes"]["default"])


def check_ended(job: ContainerJob, report: Report, deployment: str) -> None:
    check_cut_off(job, report, deployment)
    assert "from a container on host" in report.reason
    job.engine.nothing_left()


def test_containers_read_their_block_for_themselves_and_are_told_its_name_only(
    stack: Stack, job: ContainerJob, work_in_containers: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in s3.environment:
        monkeypatch.delenv(variable, raising=False)
    name = f"jobs-{secrets.token_hex(3)}"
    RemoteFileSystem(basepath="s3://jobs/blocks", settings=s3.block_settings(KEY, SECRET)).save(name, _sync=True)
    job.storage = f"block:remote-file-system/{name}"
    gate = job.home / "gate"
    what = [{"n": 0, "gate": str(gate)}, *items(4)[1:]]
    running = in_background(
        lambda: orchestrate_sync(work_in_containers, what, batch_size=2, max_in_flight=2, **job.request)
    )
    job.wait_until_started(1, LONG)
    inspected = json.dumps([container.attrs for container in job.containers()])
    gate.touch()
    report = running.result(timeout=LONG)
    assert report.items.succeeded == 4
    assert [o.result for o in job.outcomes()] == [0, 1, 2, 3]
    assert [secret for secret in (KEY, SECRET, s3.endpoint) if secret in inspected] == []
    assert [secret for secret in (KEY, SECRET) if secret in json.dumps([c["parameters"] for c in job.children()])] == []


def test_one_job_has_its_light_items_done_by_processes_and_its_heavy_ones_in_containers(
    stack: Stack, job: ContainerJob, work: str, work_in_containers: str
) -> None:
    what: list[dict[str, Any]] = [{"n": n, "size": "heavy" if n >= 2 else "light"} for n in range(4)]
    report = orchestrate_sync(
        {"light": work, "heavy": work_in_containers},
        what,
        group_by="size",
        batch_size=1,
        max_in_flight=2,
        **job.request,
    )
    check(job, report, max_in_flight=2)
    assert [o.result for o in job.outcomes()] == [0, 1, 2, 3]
    in_containers = {ran.run for ran in job.history()}
    assert [run["id"] in in_containers for run in job.children()] == [False, False, True, True]


def test_a_parent_in_a_container_has_its_items_done_by_processes(stack: Stack, job: ContainerJob, work: str) -> None:
    parent = deploy_parent("in-container", pool=DOCKER_POOL)
    form = {
        "deployment": work, "items": {"kind": "inline", "items": items(4)}, "batch_size": 2, "max_in_flight": 2,
        "parameters": job.parameters, "advanced": job.advanced,
    }  # fmt: skip
    run = start(stack, form, deployment=parent)
    ended = await_end(stack, run, LONG)
    assert ended["state_type"] == "COMPLETED", ended["state"]
    report = Report.from_json(job.folder.read_report() or {})
    check(job, report, max_in_flight=2)
    assert [o.result for o in job.outcomes()] == [0, 1, 2, 3]
    assert [ran.run for ran in job.engine.history() if ran.run == run] == [run]
    assert job.history() == [], "no child run was a container"


def test_a_folder_that_is_another_one_in_containers_ends_the_job(stack: Stack, job: ContainerJob) -> None:
    (job.home / "jobs").mkdir()
    (job.home / "theirs").mkdir()
    volumes = [*volumes_of(stack), f"{job.home / 'theirs'}:{job.storage}"]
    deployment = deploy_in_containers(job_flows.work, "work", "elsewhere", job_variables={"volumes": volumes})
    report = orchestrate_sync(deployment, items(6), batch_size=1, max_in_flight=2, on_failure="return", **job.request)
    check_ended(job, report, deployment)
    assert f"there is no such folder, only {job.storage}" in report.reason
    assert "a volume of their containers" in report.reason


def test_storage_that_containers_cannot_reach_ends_the_job(
    stack: Stack, job: ContainerJob, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    nowhere = {**s3.environment, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    deployment = deploy_in_containers(job_flows.work, "work", "cut-off", job_variables={"env": nowhere})
    job.storage = f"s3://jobs/{secrets.token_hex(3)}"
    report = orchestrate_sync(deployment, items(6), batch_size=1, max_in_flight=2, on_failure="return", **job.request)
    check_ended(job, report, deployment)
    assert "127.0.0.1:9" in report.reason
    assert "Check the address, the network and the credentials where child runs work" in report.reason


def test_a_local_folder_that_containers_do_not_mount_is_refused_before_anything_is_created(
    stack: Stack, job: ContainerJob
) -> None:
    from orchestrator import StorageError

    deployment = deploy_in_containers(job_flows.work, "work", "bare", job_variables={"volumes": []})
    with pytest.raises(StorageError, match="cannot see; give a URL that both sides reach"):
        orchestrate_sync(deployment, items(2), **job.request)
    assert job.children() == []
