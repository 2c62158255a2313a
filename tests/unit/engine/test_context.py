"""Outside of flows there is no run; inside, the outermost one is known. Flows run in a process of their own here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.engine.context import in_flow_run_process, outermost_run, run_logger
from orchestrator.stack import Stack

PROGRAM = """
import asyncio, json, threading
from prefect import flow
from orchestrator.engine.context import outermost_run, run_logger

seen = []

def look():
    run = outermost_run()
    seen.append((run.id, run.flow_name, run.run_count))

@flow
def inner():
    look()

@flow(retries=1)
def outer():
    look()
    inner()
    logger = run_logger()
    thread = threading.Thread(target=logger.info, args=("said in a thread",))
    thread.start()
    thread.join()
    if len(seen) < 4:
        raise RuntimeError("once more")
    run = outermost_run()
    return run.id, run.url, run.pool, run.deployment_id

@flow
async def async_inner():
    return outermost_run().flow_name

@flow
async def async_outer():
    return await async_inner()

print(json.dumps({"seen": seen, "own": outer(), "all": seen, "async": asyncio.run(async_outer())}))
"""


def test_outside_of_flows_there_is_no_run_and_still_a_logger() -> None:
    assert outermost_run() is None
    assert in_flow_run_process() is None
    run_logger().debug("said outside")


def test_the_outermost_run_keeps_its_id_through_subflows_threads_and_retries(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env=stack.environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    own_id, url, pool, deployment_id = told["own"]
    assert {(id_, name) for id_, name, _ in told["all"]} == {(own_id, "outer")}
    assert [count for _, _, count in told["all"]] == [1, 1, 2, 2]
    assert own_id in url
    assert (pool, deployment_id) == (None, None)
    assert told["async"] == "async-outer"
    assert "said in a thread" in done.stderr


@pytest.mark.parametrize("id_", ["", "some-run"])
def test_the_process_a_worker_started_knows_its_run(id_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", id_)
    assert in_flow_run_process() == (id_ or None)
