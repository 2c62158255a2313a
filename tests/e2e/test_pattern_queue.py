"""Ids from a real Redis, worked through by jobs on a real server and worker; some of whose parents die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from deployments.queue_batch import Queue
from orchestrator.stack import Stack
from tests.e2e import queue_flows
from tests.integration.job_support import MARKS, await_end, read_run, start
from tests.prefect_stack import POOL
from tests.redis_server import redis_server, required
from tests.support import eventually
from tests.videos import library, replace

pytestmark = [*MARKS, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
BAD = {f"id-{n:02}" for n in range(60) if n % 10 == 7}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    required()
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def ids(server: str) -> Iterator[Queue]:
    with redis.Redis.from_url(server, decode_responses=True) as connection:
        connection.flushall()
        yield Queue(connection, "ids", 3)


def left(ids: Queue) -> dict[str, list[str]]:
    """Every list that there is."""
    return {key: ids.redis.lrange(key, 0, -1) for key in ids.redis.keys("*") if ids.redis.type(key) == "list"}


def begun(trace: Path) -> list[str]:
    file = trace / "items.jsonl"
    return [json.loads(line)["id"] for line in file.read_text().splitlines()] if file.exists() else []


# ---------------------------------------------------------------------- Redis alone


def test_a_job_takes_so_many_or_what_comes_in_time(ids: Queue) -> None:
    ids.redis.rpush("ids", "a", "b", "c")
    assert [row["id"] for row in ids.pull("j1", 2, 60)] == ["a", "b"]
    assert left(ids) == {"ids": ["c"], "ids:taken:j1": ["a", "b"]}
    late = threading.Timer(0.2, lambda: ids.redis.rpush("ids", "d"))
    late.start()
    assert [row["id"] for row in ids.pull("j2", 100, 1.5)] == ["c", "d"]
    late.join()
    assert list(ids.pull("j3", 100, 0.1)) == []
    assert left(ids).keys() == {"ids:taken:j1", "ids:taken:j2"}


def test_there_are_never_more_jobs_than_places(ids: Queue) -> None:
    got: list[bool] = []
    threads = [threading.Thread(target=lambda n=n: got.append(ids.take_place(f"j{n}", 3))) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(got) == {True: 3, False: 7}


def test_what_a_job_took_that_died_before_it_began_goes_back_in_order(ids: Queue) -> None:
    ids.redis.rpush("ids", "a", "b", "c", "d")
    assert ids.take_place("j", 1)
    assert len(list(ids.pull("j", 3, 5))) == 3
    assert list(ids.orphans()) == []  # it gave a sign of life just now
    ids.redis.delete(ids.alive("j"))
    assert list(ids.orphans()) == ["j"]
    assert list(ids.orphans()) == []  # one finder alone
    assert ids.acknowledge("j", None) == {"returned": 3}
    assert left(ids) == {"ids": ["a", "b", "c", "d"]}
    assert ids.take_place("k", 1)


# ---------------------------------------------------------------------- whole jobs


@pytest.fixture
def deployed(stack: Stack, server: str, tmp_path: Path) -> Stack:
    """The example, on the stack's pool; its Redis is the test's."""
    stack.create_pool("local")
    stack.deploy(ROOT / "prefect.yaml", "queue-batch/default", "video-ingest/default")
    for flow in ("queue-batch", "video-ingest"):
        found = stack.request("GET", f"/deployments/name/{flow}/default")
        env = {"REDIS_URL": server, "ORCHESTRATOR_STORAGE": str(tmp_path / "jobs")}
        change = {"work_pool_name": POOL, "job_variables": {"env": env}}
        stack.request("PATCH", f"/deployments/{found['id']}", change)
    return stack


def test_sixty_ids_are_each_accounted_for_although_the_parent_is_killed(
    deployed: Stack, ids: Queue, server: str, tmp_path: Path
) -> None:
    work = deploy_work()
    names = [f"id-{n:02}" for n in range(60)]
    ids.redis.rpush("ids", *names)
    parameters = {"deployment": work, "parameters": {"trace": str(tmp_path)}, "most": 40, "seconds": 5,
                  "batch_size": 20, "max_in_flight": 2, "alive_seconds": 3, "jobs": 1}  # fmt: skip
    program = (
        "import json, sys; from deployments.queue_batch import queue_batch; queue_batch(**json.loads(sys.argv[1]))"
    )
    environment = dict(os.environ) | {"REDIS_URL": server, "ORCHESTRATOR_STORAGE": str(tmp_path / "jobs")}
    first = subprocess.Popen([sys.executable, "-c", program, json.dumps(parameters)], cwd=ROOT, env=environment)
    try:
        # Twelve ids of the first batch can end; the rest waits.
        eventually(lambda: len(begun(tmp_path)) >= 14 + 2, 90, "both child runs stand still in the middle")
        (job,) = ids.redis.smembers("ids:jobs")
        assert len(ids.redis.lrange(ids.taken(job), 0, -1)) == 40
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    (tmp_path / "go").touch()
    eventually(lambda: not ids.redis.exists(ids.alive(job)), 30, "the dead parent gives no sign of life")

    run = start(deployed, parameters, deployment="queue-batch/default")
    await_end(deployed, run, 200)
    assert read_run(deployed, run)["state_type"] == "COMPLETED"

    dead = {entry["id"]: entry for entry in map(json.loads, ids.redis.lrange("ids:dead", 0, -1))}
    assert left(ids) == {"ids:dead": ids.redis.lrange("ids:dead", 0, -1)}
    assert set(dead) == BAD
    assert len(ids.redis.lrange("ids:dead", 0, -1)) == len(BAD)
    assert dead["id-07"]["error"] == "ValueError: id-07 is no good"
    assert dead["id-07"]["job"] == job
    # Each ran, and only those in progress when things died may have run twice.
    times = Counter(begun(tmp_path))
    assert set(times) == set(names)
    assert sum(count - 1 for count in times.values()) <= 4, times
    assert not ids.redis.exists("ids:jobs")


def test_ids_of_videos_become_key_frames_and_a_run_without_work_says_so(
    deployed: Stack, ids: Queue, tmp_path: Path
) -> None:
    names = library(tmp_path / "videos", 6)
    replace(tmp_path / "videos", names[2], b"")
    ids.redis.rpush("ids", *names)
    places = {"source": str(tmp_path / "videos"), "target": str(tmp_path / "out")}
    run = start(deployed, {"parameters": places, "seconds": 1}, deployment="queue-batch/default")
    assert await_end(deployed, run, 120)["state_type"] == "COMPLETED"
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 5
    (dead,) = map(json.loads, ids.redis.lrange("ids:dead", 0, -1))
    assert (dead["id"], "is empty" in dead["error"]) == (names[2], True)
    assert set(left(ids)) == {"ids:dead"}

    idle = start(deployed, {"parameters": places, "seconds": 0.1}, deployment="queue-batch/default")
    assert await_end(deployed, idle, 90)["state_type"] == "COMPLETED"
    assert not ids.redis.exists("ids:jobs")
    logs = {"logs": {"flow_run_id": {"any_": [idle]}}}
    eventually(
        lambda: any("Nothing to do" in line["message"] for line in deployed.request("POST", "/logs/filter", logs)),
        60, "the run says that there is nothing to do",
    )  # fmt: skip


def deploy_work() -> str:
    """The test's batch flow, as `prefect deploy` registers it."""
    from prefect.client.orchestration import get_client
    from prefect.utilities.callables import parameter_schema

    flow: Any = queue_flows.queue_work
    with get_client(sync_client=True) as client:
        client.create_deployment(
            flow_id=client.create_flow(flow), name="default", work_pool_name=POOL,
            entrypoint="tests/e2e/queue_flows.py:queue_work", path=".",
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
            parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(), enforce_parameter_schema=True,
        )  # fmt: skip
    return "queue-work/default"
