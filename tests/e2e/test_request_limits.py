"""Whole jobs where requests are counted and a key is wanted: parent, worker and child runs behind one proxy.

All of them take its address for Prefect Cloud's, so that Prefect's own clients do what they do there. What Cloud itself
does is not known from this.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engine.pace import Pace
from orchestrator.stack import Stack
from orchestrator.stack.processes import MARK_VARIABLE
from tests.cloud import KEY, CountingProxy, as_cloud, counting, most_within
from tests.e2e.conftest import Program, write_items
from tests.integration.job_support import deploy_work
from tests.support import eventually

BUDGET = 120


@contextmanager
def worker(pool: str, environment: Mapping[str, str], folder: Path, stack: Stack) -> Iterator[None]:
    """A worker whose own requests, and those of the runs it starts, go where that environment says."""
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool", pool, "--name", pool],
            # Marked as the stack's own, which ends it should this process be killed.
            env={**environment, "PREFECT_WORKER_QUERY_SECONDS": "2", MARK_VARIABLE: stack._crew.mark},
            cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:

            def online() -> bool:
                assert process.poll() is None, (folder / "worker.log").read_text()[-2000:]
                found = stack.request("POST", f"/work_pools/{pool}/workers/filter", {})
                return any(one["status"] == "ONLINE" for one in found)

            eventually(online, 120, "the worker behind the proxy")
            yield
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def run_job(
    program: Program, proxy: CountingProxy, stack: Stack, name: str, batches: int, at_once: int, *flags: str
) -> dict[str, Any]:
    """A job whose parent (at one door), worker and child runs (at another) are behind the proxy; its report."""
    stack.create_pool(name)
    with stack.activated():
        deployment = deploy_work(name, pool=name)
    trace = program.folder / "trace"
    trace.mkdir()
    file = write_items(program.folder / "items.jsonl", [{"n": n} for n in range(4 * batches)])
    behind = {**program.environment, **as_cloud(proxy.door("children"))}
    parent = Program({**program.environment, **as_cloud(proxy.door("parent"))}, program.folder)
    with worker(name, behind, program.folder, stack):
        proxy.limit_now(use_up=("parent", 12))
        done = parent(
            "run", "--deployment", deployment, "--items", str(file), "--batch-size", "4",
            "--max-in-flight", str(at_once), "--param", f"trace={trace}", "--job-id", name, "--json", *flags,
            deadline_seconds=900,
        )  # fmt: skip
    assert done.code == 0, done.err
    report: dict[str, Any] = done.json
    polls = sum("get_scheduled_flow_runs" in asked.path for asked in proxy.of("children", 0))
    each = (proxy.count("children")[0] - polls) / batches
    print("parent", dict(proxy.count("parent")), "others", dict(proxy.count("children")), f"{each:.1f} for a child run")
    items = [json.loads(line) for line in (trace / "items.jsonl").read_text().splitlines()]
    starts = [item["index"] for item in items if item["event"] == "start"]
    assert sorted(starts) == list(range(4 * batches))  # none lost, none twice
    return report | {"said": done.err}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("batches", "at_once", "most", "seconds"),
    [
        pytest.param(2, 2, 30, 5.0, id="short", marks=pytest.mark.slow),
        pytest.param(12, 3, 250, 60.0, id="the smallest limit of Prefect Cloud", marks=pytest.mark.campaign),
    ],
)
def test_a_job_under_a_limit_of_requests_ends_whole(
    batches: int, at_once: int, most: int, seconds: float, program: Program, session_stack: Stack
) -> None:
    with counting(session_stack.api_url, key=KEY, most=most, seconds=seconds) as proxy:
        report = run_job(
            program, proxy, session_stack, f"limited-{os.getpid()}", batches, at_once,
            "--max-requests-per-minute", str(BUDGET),
        )  # fmt: skip
        parent, children = proxy.of("parent"), proxy.of("children")
    assert report["verdict"] == "completed"
    assert report["items"]["succeeded"] == 4 * batches
    assert report["batches"]["completed"] == batches
    # The parent's requests: as many as it counts (those before and after the job are no part of that), within its
    # budget in every minute, and spread.
    assert report["api_requests"] <= len(parent) <= report["api_requests"] + 15
    sent = [asked.at for asked in parent]
    assert most_within(sent, 60.0) <= BUDGET
    pace = Pace(BUDGET)
    assert most_within(sent, 10.0) <= pace.burst + 12 * pace.rate
    # The limit was met, which people were told, and the key was everywhere.
    assert {asked.answer for asked in (*parent, *children)} <= {0, 429}
    assert any(asked.answer == 429 for asked in parent)
    assert "Prefect asks for fewer requests" in report["said"]
    passed = [asked.at for asked in (*parent, *children) if asked.answer == 0]
    assert most_within(passed, seconds * 0.99) <= most
    assert any(asked.is_websocket and asked.answer == 0 for asked in children)
    assert not [asked for asked in proxy.asked if asked.answer == 401]
