"""Fixtures for tests of whole jobs on the shared stack."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.stack import Stack
from tests.integration.job_support import Watched, deploy_work


@pytest.fixture(scope="module")
def work(session_stack: Stack) -> str:
    """The batch deployment most jobs fan out over."""
    with session_stack.activated():
        return deploy_work()


@pytest.fixture
def job(stack: Stack, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Watched]:
    """A job named after the test, in a folder of its own; what still runs at the end is cancelled."""
    name = request.node.name.replace("[", "-").replace("]", "").removeprefix("test_")[:60]
    watched = Watched(stack, tmp_path, f"{name}-{secrets.token_hex(2)}")
    logging.getLogger("orchestrator").setLevel(logging.INFO)
    yield watched
    for run in watched.children():
        if run["state_type"] in ("SCHEDULED", "PENDING", "RUNNING"):
            stack.request("POST", f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}})


@pytest.fixture
def quick_stop(monkeypatch: pytest.MonkeyPatch) -> float:
    """Items get two seconds to end after a stop instead of ten; the seconds until nothing may start any more."""
    monkeypatch.setenv("ORCHESTRATOR_FENCE_SECONDS", "1")
    monkeypatch.setenv("ORCHESTRATOR_ITEM_GRACE_SECONDS", "2")
    return 1.0
