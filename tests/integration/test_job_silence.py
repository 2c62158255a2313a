"""Workers that die with all their child runs, so that Prefect says Running for ever, on a real server."""

from __future__ import annotations

import os
import signal

import pytest

from orchestrator import orchestrate_sync
from orchestrator.stack import Stack
from tests.integration.job_support import MARKS, Watched, check, deploy_work, in_background, timed
from tests.support import eventually

pytestmark = MARKS


def test_a_job_whose_worker_died_with_its_children_goes_on_with_another_worker(
    stack: Stack, job: Watched, quick_stop: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_ALIVE_SECONDS", "2")
    monkeypatch.setenv("ORCHESTRATOR_CANCEL_DEADLINE_SECONDS", "3")
    stack.create_pool("it-silence")
    worker = stack.start_worker(pool="it-silence")
    deployed = deploy_work("silence", pool="it-silence")
    gate = job.home / "gate"
    what = [{"n": n, "gate": str(gate)} if n % 3 == 1 else {"n": n} for n in range(6)]
    try:
        future = in_background(lambda: orchestrate_sync(deployed, what, batch_size=3, max_in_flight=2, **job.request))
        eventually(lambda: {1, 4} <= set(job.started()), 90, "both children at work on their second item")
        stack.kill_worker(worker)
        for pid in job.processes():
            os.kill(pid, signal.SIGKILL)
        worker = stack.start_worker(pool="it-silence")
        assert [run["state_type"] for run in job.children()] == ["RUNNING", "RUNNING"], "nobody told Prefect"
        gate.touch()
        with timed("from the death of worker and children to the end of the job"):
            report = future.result(timeout=180)
    finally:
        gate.touch()
        stack.stop_worker(worker)
    assert (report.verdict.value, report.items.succeeded, report.batches.completed) == ("completed", 6, 2)
    # Taken over: what was finished is not run again, what was in progress is.
    assert [job.started().count(n) for n in range(6)] == [1, 2, 1, 1, 2, 1]
    assert sum("no sign of life" in note for note in report.notes) == 2, report.notes
    # The server itself ends what it was asked to cancel and nobody is left for, minutes later: not waited for here.
    for run in job.children():
        if run["state_type"] == "CANCELLING":
            stack.request("POST", f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLED"}})
    check(job, report)
