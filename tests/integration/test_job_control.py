"""A running job that is paused, resumed, widened and given another kill switch, on a real server and worker."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from orchestrator import orchestrate_sync
from orchestrator.cli.app import run
from orchestrator.cli.looking import job_status
from orchestrator.engine.registering import register
from orchestrator.flows.control import control_job_flow
from orchestrator.reactor import JobView
from orchestrator.stack import Stack
from tests.integration.job_support import MARKS, Watched, await_end, check, in_background, items, start
from tests.prefect_stack import POOL
from tests.support import eventually

pytestmark = [*MARKS, pytest.mark.timeout(480)]


@pytest.fixture(scope="module")
def control(session_stack: Stack) -> str:
    """The deployment `control-job`, as `orchestrator deploy` makes it."""
    with session_stack.activated():
        asyncio.run(register(control_job_flow, "default", pool=POOL, version="test"))
    return "control-job/default"


def test_a_job_is_told_from_terminal_and_ui_how_to_go_on(
    work: str, job: Watched, stack: Stack, control: str, tmp_path: Path, quick_stop: float,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    gate = tmp_path / "gate"
    what: list[dict[str, Any]] = [{"n": 0, "gate": str(gate)}, *items(6, fail="ValueError")]

    def tell(action: str, **fields: Any) -> dict[str, Any]:
        form = {"job": job.job, "action": action, "storage": job.storage, **fields}
        return await_end(stack, start(stack, form, deployment=control))

    views: list[JobView] = []
    future = in_background(
        lambda: orchestrate_sync(
            work, what, batch_size=1, max_in_flight=1, kill_switch=None, on_failure="return",
            on_progress=views.append, **job.request,
        )
    )  # fmt: skip
    job.wait_until_started(1)
    storage = ["--storage", job.storage]
    assert run(["pause", job.job, "--reason", "the disk is full", *storage]) == 0
    eventually(lambda: views[-1].paused, 30, "the pause")
    gate.touch()
    eventually(lambda: job.children()[0]["state_type"] == "COMPLETED", 60, "the end of the first child")
    facts = job_status(job.folder, watch=True)
    assert (facts["state"], facts["paused"]) == ("paused", True)
    # A wider window while it is paused: it holds once the job goes on, and nothing starts before.
    scaled = tell("scale", max_in_flight=2, reason="more machines")
    assert (scaled["state_type"], scaled["state_name"]) == ("COMPLETED", "Completed")
    assert "max_in_flight changed from 1 to 2 by control-job run " in scaled["state"]["message"]
    assert run(["scale", job.job, "--kill-switch", "failed >= 2", *storage]) == 0
    assert len(job.children()) == 1
    capsys.readouterr()
    assert run(["resume", job.job, *storage]) == 0
    assert "goes on" in capsys.readouterr().out
    report = future.result(timeout=180)
    check(job, report, max_in_flight=2)
    assert (report.verdict.value, report.kill_switch.clause) == ("tripped", "failed >= 2")
    assert report.max_in_flight_seen == 2
    assert job.folder.newest_epoch() == 1
    assert [" ".join(note.split()[:2]) for note in report.notes[:4]] == [
        "paused by", "max_in_flight changed", "kill switch", "went on",
    ]  # fmt: skip
    over = tell("pause")
    assert (over["state_name"], "is over (tripped)" in over["state"]["message"]) == ("Refused", True)
