"""What the tests of the UI share: a browser, a deployed project, and the API as the UI uses it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.stack import Stack, StackError
from tests.prefect_stack import POOL
from tests.support import eventually

HERE = Path(__file__).parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 240
"""Seconds for a run of a busy machine; only what goes wrong takes so long."""

TERMINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
PROJECT = f"""
deployments:
  - name: ui
    entrypoint: orchestrator.flows.parent.orchestrate_flow
    work_pool: {{name: {POOL}}}
  - name: ui
    entrypoint: ui_flows.py:careful
    work_pool: {{name: {POOL}}}
"""


def need_chromium() -> None:
    """Skip the test where there is no browser, unless one is required."""
    if CHROMIUM is None:
        reason = "no Chromium here (Debian: apt-get install chromium)"
        if os.environ.get("ORCHESTRATOR_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


@contextmanager
def open_browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Ui:
    """The deployed project on a stack, and what the UI asks its API for."""

    def __init__(self, stack: Stack, name: str = "ui") -> None:
        self.stack = stack
        self.deployment = stack.request("GET", f"/deployments/name/orchestrate/{name}")

    @classmethod
    def deploy(cls, stack: Stack, folder: Path) -> Ui:
        (folder / "prefect.yaml").write_text(PROJECT)
        shutil.copy(HERE / "ui_flows.py", folder)
        stack.deploy(folder / "prefect.yaml")
        return cls(stack)

    def form_url(self, ui: str = "v2/") -> str:
        return f"{self.stack.ui_url}/{ui}deployments/deployment/{self.deployment['id']}/run"

    def run_url(self, run: str, tab: str = "", ui: str = "v2/") -> str:
        return f"{self.stack.ui_url}/{ui}runs/flow-run/{run}" + (f"?tab={tab}" if tab else "")

    def page_url(self, run: str, ui: str = "v2/") -> str:
        return f"{self.stack.ui_url}/{ui}artifacts/artifact/{self.page(run)['id']}"

    def submit(self, **parameters: Any) -> str:
        """The run that the form would create; its id.

        Raises:
            StackError: Prefect refuses it.
        """
        run: dict[str, Any] = eventually(lambda: self._create(parameters), PATIENCE, "the run is created")
        return str(run["id"])

    def _create(self, parameters: dict[str, Any]) -> dict[str, Any] | None:
        body = {"parameters": parameters, "enforce_parameter_schema": True, "state": {"type": "SCHEDULED"}}
        try:
            run: dict[str, Any] = self.stack.request(
                "POST", f"/deployments/{self.deployment['id']}/create_flow_run", body
            )
        except StackError as e:
            if "HTTP 503" in str(e):  # SQLite is busy
                return None
            raise
        return run

    def run(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = self.stack.request("GET", f"/flow_runs/{run}")
        return found

    def await_state(self, run: str, *types: str) -> dict[str, Any]:
        """The run, once its state is of one of those types; by default once it is over."""
        wanted = set(types) or TERMINAL

        def there() -> dict[str, Any] | None:
            found = self.run(run)
            return found if found["state"] and found["state"]["type"] in wanted else None

        found = eventually(there, PATIENCE, f"run {run} in {sorted(wanted)}")
        assert found is not None
        return found

    def artifacts(self, *runs: str) -> list[dict[str, Any]]:
        wanted = {"artifacts": {"flow_run_id": {"any_": list(runs)}}}
        found: list[dict[str, Any]] = self.stack.request("POST", "/artifacts/filter", wanted)
        return found

    def page(self, run: str) -> dict[str, Any]:
        (page,) = self.artifacts(run)
        return page

    def children(self, run: str) -> list[dict[str, Any]]:
        wanted = {"flow_runs": {"tags": {"all_": [f"job:{run}-1"]}}, "sort": "NAME_ASC"}
        found: list[dict[str, Any]] = self.stack.request("POST", "/flow_runs/filter", wanted)
        return found

    def logs(self, run: str) -> list[str]:
        """What the run logged itself, oldest first: level and text."""
        wanted = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}
        lines = self.stack.request("POST", "/logs/filter", wanted)
        names = {10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR"}
        return [f"{names[line['level']]} {line['message']}" for line in lines]
