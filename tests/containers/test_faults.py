"""What goes wrong with containers: killed, out of memory, without an image, cancelled or stopped at any moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from orchestrator import orchestrate_sync
from orchestrator.stack import Stack
from orchestrator.stack.containers import COMMAND
from tests.chaos.proxy import Mode, Proxy
from tests.containers.jobs import DOCKER_POOL, ContainerJob, deploy_in_containers
from tests.integration import job_flows
from tests.integration.job_support import MARKS, check, in_background, items, read_run, seconds, set_state
from tests.s3server import s3_server
from tests.support import eventually

pytestmark = MARKS
LONG = 300.0
GONE_SECONDS = 15.0


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items get two seconds to end after a stop; a child run without a sign of life is given up after twelve."""
    monkeypatch.setenv("ORCHESTRATOR_FENCE_SECONDS", "1")
    monkeypatch.setenv("ORCHESTRATOR_ITEM_GRACE_SECONDS", "2")
    monkeypatch.setenv("ORCHESTRATOR_ALIVE_SECONDS", "2")


def deploy_behind_a_door(job: ContainerJob) -> tuple[str, Path]:
    """A deployment whose containers come up and look at their run once a file is there; that file."""
    door = job.home / "door"
    command = f"sh -c 'until [ -e {door} ]; do sleep 0.1; done; exec {COMMAND}'"
    return deploy_in_containers(job_flows.work, "work", "slow", job_variables={"command": command}), door


def run_named(job: ContainerJob, batch: int) -> dict[str, Any] | None:
    """The child run of that batch (from 1), once there is one."""
    return next((run for run in job.children() if f" {batch}/" in run["name"]), None)


def is_starting(job: ContainerJob, batch: int) -> bool:
    """Its container is there, and Prefect does not say yet that it runs."""
    run = run_named(job, batch)
    return run is not None and run["state_type"] == "PENDING" and bool(job.engine.of_run(run["id"]))


def test_a_trip_ends_a_running_a_starting_and_a_scheduled_child_and_leaves_no_container(
    stack: Stack, job: ContainerJob, work_in_containers: str
) -> None:
    slow, door = deploy_behind_a_door(job)
    stack.request("POST", f"/work_pools/{DOCKER_POOL}/queues", {"name": f"held-{job.job[-4:]}", "is_paused": True})
    held = deploy_in_containers(job_flows.work, "work", "held", work_queue_name=f"held-{job.job[-4:]}")
    gate = job.home / "gate"
    what: list[dict[str, Any]] = [
        {"n": 0, "group": "running", "gate": str(gate), "fail": "ValueError"},
        {"n": 1, "group": "running", "seconds": 60},
        {"n": 2, "group": "starting"}, {"n": 3, "group": "held"},
    ]  # fmt: skip
    running = in_background(
        lambda: orchestrate_sync(
            {"running": work_in_containers, "starting": slow, "held": held}, what, group_by="group", batch_size=2,
            max_in_flight=3, kill_switch="failed >= 1", on_failure="return", **job.request,
        )
    )  # fmt: skip
    job.wait_until_started(1, LONG)
    eventually(lambda: is_starting(job, 2), LONG, "a container that comes up")
    gate.touch()
    eventually(lambda: job.folder.read_stop(), LONG, "the trip")
    door.touch()
    report = running.result(timeout=LONG)
    stopped = job.stopped_at()
    job.engine.nothing_left()
    check(job, report, max_in_flight=3)
    assert (report.verdict.value, report.items.failed) == ("tripped", 1)
    assert report.kill_switch.clause == "failed >= 1"
    history = job.history()
    assert len(history) == 2, "one ran, one was starting"
    late = {ran.run: round(ran.ended - stopped, 1) for ran in history if ran.ended is not None}
    print(f"containers gone after the stop: {late}")
    assert len(late) == 2
    assert max(late.values()) <= GONE_SECONDS, late
    assert "RUNNING" not in [state["type"] for run in job.children()[1:] for state in job.states(run["id"])]
    assert {run["name"][-3:]: run["state_type"] for run in job.children()} == dict.fromkeys(
        ("1/3", "2/3", "3/3"), "CANCELLED"
    )


def test_a_killed_container_is_replaced_and_only_its_rest_runs_again(
    stack: Stack, job: ContainerJob, work_in_containers: str
) -> None:
    gate = job.home / "gate"
    what: list[dict[str, Any]] = [{"n": 0}, {"n": 1, "gate": str(gate)}, {"n": 2}]
    running = in_background(lambda: orchestrate_sync(work_in_containers, what, batch_size=3, **job.request))
    job.wait_until_started(2, LONG)
    (container,) = job.containers()
    container.kill()
    gate.touch()
    report = running.result(timeout=LONG)
    check(job, report, max_in_flight=1)
    assert report.items.succeeded == 3
    assert job.started() == [0, 1, 1, 2]
    first, second = job.children()
    assert (first["state_type"], second["state_type"]) == ("CRASHED", "COMPLETED"), first["state"]
    assert [ran.code for ran in job.history()] == [137, 0]
    job.engine.nothing_left()


def test_a_container_without_enough_memory_is_told_apart_and_the_job_comes_to_a_clear_end(
    stack: Stack, job: ContainerJob
) -> None:
    tight = deploy_in_containers(job_flows.work, "work", "tight", job_variables={"mem_limit": "400m"})
    what = [{"n": 0}, {"n": 1, "eat": 1000}]
    report = orchestrate_sync(
        tight, what, batch_size=2, batch_retries=1, kill_switch=None, on_failure="return", **job.request
    )
    check(job, report, max_in_flight=1)
    assert (report.batches.crashed, report.items.succeeded, report.items.unknown) == (1, 1, 1)
    assert [run["state_type"] for run in job.children()] == ["CRASHED", "CRASHED"]
    print([run["state"]["message"] for run in job.children()])
    job.engine.nothing_left()


def test_an_image_that_is_not_there_ends_each_batch_with_its_name(stack: Stack, job: ContainerJob) -> None:
    image = "127.0.0.1:9/no-such-image:1"
    missing = deploy_in_containers(job_flows.work, "work", "missing", job_variables={"image": image})
    report = orchestrate_sync(
        missing, items(2), batch_size=1, max_in_flight=2, batch_retries=1, kill_switch=None, on_failure="return",
        **job.request,
    )  # fmt: skip
    check(job, report)
    assert (report.batches.crashed, report.items.not_started) == (2, 2), report
    assert [run["state_type"] for run in job.children()] == ["CRASHED"] * 4
    print([run["state"]["message"] for run in job.children()])
    assert "no-such-image" in job.children()[0]["state"]["message"]


def test_a_child_cancelled_while_its_container_comes_up_settles_soon(stack: Stack, job: ContainerJob) -> None:
    slow, door = deploy_behind_a_door(job)
    running = in_background(lambda: orchestrate_sync(slow, items(2), batch_size=2, on_failure="return", **job.request))
    eventually(lambda: is_starting(job, 1), LONG, "a container that comes up")
    run = run_named(job, 1)
    assert run is not None
    set_state(stack, run["id"], "CANCELLING", "Cancelling")
    asked = time.time()
    door.touch()
    report = running.result(timeout=LONG)
    ended = read_run(stack, run["id"])
    print(f"cancelled {seconds(ended['state']['timestamp']) - asked:.1f} s after it was asked for")
    assert ended["state_type"] == "CANCELLED"
    assert seconds(ended["state"]["timestamp"]) - asked <= 10
    assert (report.batches.cancelled, report.items.not_started) == (1, 2)
    assert job.trace() == []
    job.engine.nothing_left()


# ---------------------------------------------------------------------- the network


@pytest.fixture
def proxies() -> Iterator[Callable[[str], Proxy]]:
    """Makes proxies before servers of this machine, which lose what they are told to lose."""
    made: list[Proxy] = []

    def before(url: str) -> Proxy:
        proxy = Proxy(int(urlsplit(url).port or 0))
        proxy.start()
        made.append(proxy)
        return proxy

    yield before
    for proxy in made:
        proxy.set(Mode.PASS)
        proxy.stop()


def test_a_container_that_loses_prefect_alone_does_its_batch_and_its_outcomes_count(
    stack: Stack, job: ContainerJob, proxies: Callable[[str], Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reaches the job folder: nobody stopped it, and its parent lives. That it is done, the folder says."""
    monkeypatch.setenv("ORCHESTRATOR_CANCEL_DEADLINE_SECONDS", "5")
    api = proxies(stack.api_url)
    cut = deploy_in_containers(job_flows.work, "work", "cut", job_variables={"env": {"PREFECT_API_URL": api.url}})
    gate = job.home / "gate"
    what: list[dict[str, Any]] = [{"n": 0}, {"n": 1, "gate": str(gate)}, {"n": 2}]
    running = in_background(lambda: orchestrate_sync(cut, what, batch_size=3, **job.request))
    job.wait_until_started(2, LONG)
    api.set(Mode.BLACKHOLE)
    gate.touch()
    report = running.result(timeout=LONG)
    assert report.items.succeeded == 3
    assert job.started() == [0, 1, 2], "no item ran twice"
    assert len(job.children()) == 1
    api.set(Mode.PASS)
    job.engine.nothing_left(LONG)


def test_a_container_that_loses_its_storage_stops_by_itself_and_its_rest_is_done_by_another(
    stack: Stack, job: ContainerJob, proxies: Callable[[str], Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the folder nobody can tell it to stop: it hears no sign of life of its parent any more, and stops.

    Prefect is lost with it: a machine behind a broken network. Connections stay open, and nothing comes through.
    """
    monkeypatch.setenv("ORCHESTRATOR_BEAT_SECONDS", "2")
    monkeypatch.setenv("ORCHESTRATOR_LEASE_SECONDS", "6")
    monkeypatch.setenv("ORCHESTRATOR_CANCEL_DEADLINE_SECONDS", "5")
    with s3_server() as s3:
        api, storage = proxies(stack.api_url), proxies(s3.endpoint)
        env = {
            **s3.environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{storage.port}", "PREFECT_API_URL": api.url,
        }  # fmt: skip
        lost = deploy_in_containers(job_flows.work, "work", "lost", job_variables={"env": env})
        job.storage = f"s3://jobs/{job.job[-4:]}"
        what = items(600, seconds=0.5)
        running = in_background(
            lambda: orchestrate_sync(lost, what, batch_size=600, enough_when="succeeded >= 20", **job.request)
        )
        job.wait_until_started(3, LONG)
        (first,) = job.children()
        storage.set(Mode.BLACKHOLE)
        api.set(Mode.BLACKHOLE)
        cut = time.time()
        eventually(lambda: time.time() - job.last_start() > 8, 120, "the end of the first container's items")
        print(f"last item started {job.last_start() - cut:.1f} s after the network was lost")
        assert job.last_start() - cut < 6 + 2 * 1 + 5, "the sign of life, two looks, what a busy machine adds"
        storage.set(Mode.PASS)
        api.set(Mode.PASS)
        report = running.result(timeout=LONG)
        assert (report.verdict.value, len(job.children())) == ("enough", 2)
        assert read_run(stack, first["id"])["state_type"] in ("CANCELLED", "CRASHED", "FAILED")
        job.engine.nothing_left(LONG)
