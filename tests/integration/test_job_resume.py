"""Jobs that go on after their parent, worker, server or machine was lost, in every way there is to resume one."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from orchestrator import Report, orchestrate, orchestrate_sync, resume_sync
from orchestrator.flows.parent import orchestrate_flow
from orchestrator.stack import Stack
from tests.integration.crash_parent import Plan
from tests.integration.crash_parent import start as start_process
from tests.integration.job_support import (
    MARKS,
    TERMINAL,
    Watched,
    check,
    check_runs,
    deploy_work,
    in_background,
    items,
    timed,
)
from tests.prefect_stack import POOL, StackOptions
from tests.support import aeventually, eventually

pytestmark = MARKS
PATIENCE = 120.0


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory, stack_options: StackOptions) -> Iterator[Stack]:
    """A stack whose server and workers may be killed."""
    options = stack_options()
    with Stack(tmp_path_factory.mktemp("own-stack"), pool=POOL, **options) as stack, stack.activated():
        yield stack


@pytest.fixture
def lonely(own_stack: Stack, tmp_path: Path) -> Watched:
    """A job on that stack."""
    with own_stack.activated():
        return Watched(own_stack, tmp_path, f"lonely-{tmp_path.name[-20:]}")


def gated(job: Watched, batch: int, count: int = 2) -> list[dict[str, Any]]:
    """The items of a batch whose first one waits for the gate of that batch."""
    return [{"n": n, **({"gate": str(gate(job, batch))} if n == 0 else {})} for n in range(count)]


def gate(job: Watched, batch: int) -> Path:
    return job.home / f"gate-{batch}"


def killed_once_at_work(job: Watched, request: dict[str, Any], begun: set[int]) -> None:
    """Start a parent, and SIGKILL it as soon as these items have begun."""
    home = job.home
    plan = Plan(job.job, job.storage, "", 0, str(home / "passed.txt"), str(home / "parent.log"), request | job.request)
    process = start_process(plan, dict(os.environ))
    try:
        eventually(lambda: begun <= set(job.started()), PATIENCE, f"items {begun} begun")
    finally:
        process.kill()
        process.join()


# ---------------------------------------------------------------------- its parent was lost


def test_the_command_line_adopts_what_runs_settles_what_ended_and_runs_what_is_left(
    work: str, job: Watched, stack: Stack
) -> None:
    what = [*items(2), *gated(job, 1), *gated(job, 2), *items(2)]
    request = {"deployment": work, "items": what, "batch_size": 2, "max_in_flight": 2}
    killed_once_at_work(job, request, {0, 2, 4})
    before = [run["id"] for run in job.children()]
    assert len(before) == 3
    gate(job, 1).touch()  # ends while there is no parent
    eventually(lambda: {2, 3} <= {line["index"] for line in job.trace("end")}, PATIENCE, "the second batch")
    command = [sys.executable, "-m", "orchestrator", "resume", job.job, "--storage", job.storage, "--json"]
    process = subprocess.Popen(command, env=stack.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: job.folder.newest_epoch() == 2, PATIENCE, "the second parent")
        gate(job, 2).touch()
        printed, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    report = Report.from_json(json.loads(printed))
    assert (process.returncode, report.items.succeeded) == (0, 8)
    check(job, report, max_in_flight=2)
    check_runs(job, [(0, 0), (1, 0), (2, 0), (3, 0)])
    assert [run["id"] for run in job.children()][:3] == before


async def test_a_new_run_of_the_parent_deployment_with_that_job_id_goes_on(work: str, job: Watched) -> None:
    request = {"deployment": work, "items": gated(job, 0), "batch_size": 2, "max_in_flight": 1}
    await asyncio.to_thread(killed_once_at_work, job, request, {0})
    gate(job, 0).touch()
    state = await orchestrate_flow(**form(work, job, gated(job, 0)), return_state=True)
    assert state.is_completed()
    report = Report.from_json(job.folder.read_report() or {})
    check(job, report, max_in_flight=1)
    check_runs(job, [(0, 0)])


def form(work: str, job: Watched, what: list[Any]) -> dict[str, Any]:
    return {
        "deployment": work, "items": {"kind": "inline", "items": what}, "parameters": job.parameters, "batch_size": 2,
        "max_in_flight": 1, "advanced": job.advanced,
    }  # fmt: skip


# ---------------------------------------------------------------------- retries of the user's flow


def test_a_flow_that_fails_between_its_jobs_goes_on_with_the_second_one(work: str, job: Watched) -> None:
    ids: list[str] = []
    more = {"batch_size": 2, "storage": job.storage, "parameters": job.parameters}

    @flow(retries=1, name="it-two-jobs")
    def mine() -> list[Report]:
        first = orchestrate_sync(work, items(2), **more)
        ids.append(first.job_id)
        if len(ids) == 1:
            raise RuntimeError("what comes between the jobs fails once")
        return [first, orchestrate_sync(work, items(1), **more)]

    first, second = mine()
    assert ids == [first.job_id] * 2
    assert second.job_id == re.sub("-1$", "-2", first.job_id) != first.job_id
    for report in (first, second):
        job.job = report.job_id
        assert len(job.children()) == 1
        assert report.items.succeeded == report.items.total
    assert sorted(job.started()) == [0, 0, 1]  # of both jobs


async def test_an_async_flow_that_fails_amid_its_job_adopts_its_children_on_its_retry(work: str, job: Watched) -> None:
    passes = 0
    more = {"batch_size": 2, "storage": job.storage, "parameters": job.parameters, "on_parent_cancelled": "abandon"}

    @flow(retries=1, name="it-interrupted")
    async def mine() -> Report:
        nonlocal passes
        passes += 1
        running = asyncio.ensure_future(orchestrate(work, gated(job, 0), **more))
        if passes == 1:
            await aeventually(begun, PATIENCE, "the child at work")
            running.cancel()
            await asyncio.wait([running])
            raise RuntimeError("something else fails while the job runs")
        gate(job, 0).touch()
        return await running

    async def begun() -> bool:
        return bool(job.started())

    report = await mine()
    assert passes == 2
    job.job = report.job_id
    check(job, report, max_in_flight=1)
    check_runs(job, [(0, 0)])
    assert report.items.succeeded == 2


# ---------------------------------------------------------------------- two parents


async def test_the_older_of_two_parents_says_in_one_line_which_run_took_the_job_over(
    work: str, job: Watched, stack: Stack
) -> None:
    asked = form(work, job, [*gated(job, 0), *items(2)])
    older = asyncio.ensure_future(orchestrate_flow(**asked, return_state=True))

    async def at_work() -> bool:
        return bool(job.started())

    await aeventually(at_work, PATIENCE, "the child at work")
    newer = asyncio.ensure_future(orchestrate_flow(**asked, return_state=True))
    state = await older
    who = job.folder.read_parent(2)
    assert (state.type.value, state.name) == ("FAILED", "TakenOver")
    line = f"ob {job.job!r} was taken over by parent run {who['run']} (process {os.getpid()} on {who['host']})"
    assert line in str(state.message)
    gate(job, 0).touch()
    assert (await newer).is_completed()
    report = Report.from_json(job.folder.read_report() or {})
    check(job, report, max_in_flight=1)
    check_runs(job, [(0, 0), (1, 0)])
    assert report.items.succeeded == 4
    older_run = str(state.state_details.flow_run_id)

    def logged() -> list[str]:
        wanted = {"logs": {"flow_run_id": {"any_": [older_run]}, "level": {"ge_": 30}}}
        lines = stack.request("POST", "/logs/filter", wanted)
        said = [entry["message"] for entry in lines if "taken over" in entry["message"]]
        return [message for message in said if not message.startswith("Finished in state")]  # Prefect's own word

    found = eventually(logged, PATIENCE, "the older parent's line")
    assert sum(line in message for message in found) == 1, found


# ---------------------------------------------------------------------- more than the parent was lost


def test_a_server_that_died_and_came_back_while_there_was_no_parent_knows_the_children(lonely: Watched) -> None:
    job, stack = lonely, lonely.stack
    what = [*gated(job, 0), *gated(job, 1), *items(2)]
    killed_once_at_work(job, {"deployment": deploy_work(), "items": what, "batch_size": 2, "max_in_flight": 2}, {0, 2})
    stack.kill_server()
    gate(job, 0).touch()  # this batch ends while nobody can be told
    eventually(lambda: {0, 1} <= {line["index"] for line in job.trace("end")}, PATIENCE, "the first batch")
    stack.start_server()
    with timed("from the server's return to the end of the job"):
        future = in_background(lambda: resume_sync(job.job, storage=job.storage))
        eventually(lambda: job.folder.newest_epoch() == 2, PATIENCE, "the second parent")
        gate(job, 1).touch()
        report = future.result(PATIENCE)
    assert (report.verdict.value, report.items.succeeded) == ("completed", 6)
    eventually(lambda: not unsettled(job), PATIENCE, "the children's states")
    check(job, report, max_in_flight=2)
    check_runs(job, [(0, 0), (1, 0), (2, 0)])


@pytest.mark.slow
def test_a_job_survives_the_loss_of_the_whole_machine(lonely: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    job, stack = lonely, lonely.stack
    for name, value in {"ALIVE": "2", "CANCEL_DEADLINE": "3", "FENCE": "1", "ITEM_GRACE": "2"}.items():
        monkeypatch.setenv(f"ORCHESTRATOR_{name}_SECONDS", value)
    what = [*({"n": n, "gate": str(gate(job, n))} if n % 2 else {"n": n} for n in range(4)), *items(2)]
    killed_once_at_work(
        job, {"deployment": deploy_work(), "items": what, "batch_size": 2, "max_in_flight": 2}, {0, 1, 2, 3}
    )
    for worker in stack.workers:
        stack.kill_worker(worker)
    for pid in job.processes():
        os.kill(pid, signal.SIGKILL)
    stack.kill_server()
    gate(job, 1).touch()
    gate(job, 3).touch()
    stack.start_server()
    stack.start_worker()
    with timed("from the machine's return to the end of the job"):
        report = resume_sync(job.job, storage=job.storage)
    assert (report.verdict.value, report.items.succeeded) == ("completed", 6)
    # What was finished is not run again, what was in progress is.
    assert Counter(job.started()) == {0: 1, 1: 2, 2: 1, 3: 2, 4: 1, 5: 1}
    for run_id in unsettled(job):  # those whose process is gone: the server itself ends them, minutes later
        stack.request("POST", f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLED"}})
    check(job, report)
    check_runs(job, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)], twice={1, 3})


def unsettled(job: Watched) -> list[str]:
    return [run["id"] for run in job.children() if run["state_type"] not in TERMINAL]
