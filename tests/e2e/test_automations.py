"""`deployments/automations.yaml` on a real server: what it says is done when a job says how it goes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from orchestrator.stack import Stack
from tests.e2e.ui_support import PATIENCE, Ui
from tests.support import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SHIPPED = Path(__file__).parents[2] / "deployments" / "automations.yaml"
Create = Callable[[Path], None]


@pytest.fixture(scope="module")
def ui(session_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Ui:
    return Ui.deploy(session_stack, tmp_path_factory.mktemp("automations-project"))


@pytest.fixture
def create(session_stack: Stack) -> Iterator[Create]:
    """Create the automations of a file with the command that the file names; they are gone after the test."""

    def known() -> set[str]:
        return {str(a["id"]) for a in session_stack.request("POST", "/automations/filter", {})}

    before = known()

    def run(file: Path) -> None:
        command = [sys.executable, "-m", "prefect", "automation", "create", "--from-file", str(file)]
        done = subprocess.run(command, env=session_stack.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    yield run
    for automation in known() - before:
        session_stack.request("DELETE", f"/automations/{automation}")


def test_a_tripped_kill_switch_pauses_the_schedule_of_its_deployment(ui: Ui, create: Create) -> None:
    create(SHIPPED)
    place = f"/deployments/{ui.deployment['id']}"
    assert not ui.stack.request("GET", place)["paused"]
    try:
        run = ui.submit(deployment="careful/ui", items={"items": [{"fail": "no"}] * 10}, kill_switch="failed >= 1")
        state = ui.await_state(run)["state"]
        assert (state["type"], state["name"]) == ("FAILED", "Tripped")
        eventually(lambda: ui.stack.request("GET", place)["paused"], PATIENCE, "the parent's deployment is paused")
    finally:
        ui.stack.request("POST", f"{place}/resume_deployment")


def test_a_job_that_is_not_over_in_time_is_cancelled(ui: Ui, create: Create, tmp_path: Path) -> None:
    automations = yaml.safe_load(SHIPPED.read_text())["automations"]
    (late,) = [a for a in automations if a["trigger"]["posture"] == "Proactive"]
    assert late["trigger"]["within"] == 24 * 3600
    late["trigger"]["within"] = 10  # the least that Prefect takes
    file = tmp_path / "automations.yaml"
    file.write_text(yaml.safe_dump({"automations": [late]}))
    create(file)

    run = ui.submit(deployment="careful/ui", items={"stop": 2000}, batch_size=1000, parameters={"seconds": 0.5})
    ui.await_state(run, "CANCELLING", "CANCELLED")
    ui.await_state(run)
    eventually(lambda: ui.page(run)["data"].startswith("# Cancelled: "), PATIENCE, "the page says so")
