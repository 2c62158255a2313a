"""Which of the two ways a container's run is supervised in: ours, or Prefect's own command."""

from __future__ import annotations

import runpy
import sys
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from orchestrator.engine import supervising

RUN = "11111111-1111-4111-8111-111111111111"


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines of modules that are run instead; none is."""
    run: list[list[str]] = []
    monkeypatch.setattr(runpy, "run_module", lambda name, **how: run.append([name, *sys.argv[1:]]))
    monkeypatch.setattr(sys, "argv", ["orchestrator.engine.supervising"])
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", RUN)
    monkeypatch.delenv(supervising.SIGTERM_BEHAVIOR, raising=False)
    return run


@pytest.fixture
def supervised(monkeypatch: pytest.MonkeyPatch) -> list[UUID]:
    runs: list[UUID] = []

    async def supervise(run_id: UUID) -> bool:
        runs.append(run_id)
        return True

    monkeypatch.setattr(supervising, "supervise", supervise)
    return runs


@pytest.mark.parametrize(
    ("behavior", "ours"), [("", True), ("crash", True), ("reschedule", False), ("RELINQUISH", False)]
)
def test_what_only_prefects_command_does_at_a_sigterm_is_left_to_it(
    behavior: str, ours: bool, commands: list[list[str]], supervised: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(supervising.SIGTERM_BEHAVIOR, behavior)
    supervising.main()
    assert supervised == ([UUID(RUN)] if ours else [])
    assert commands == ([] if ours else [["prefect", "flow-run", "execute"]])


def test_the_behaviors_are_those_of_the_installed_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.cli.flow_run import _termination_intent

    for behavior, prefects in (("crash", False), ("", False), ("reschedule", True), ("relinquish", True)):
        monkeypatch.setenv(supervising.SIGTERM_BEHAVIOR, behavior)
        assert (_termination_intent() is not None) is prefects is (behavior in supervising._PREFECTS_OWN)


@pytest.mark.parametrize("error", [ImportError, TypeError, AttributeError])
def test_where_prefects_parts_are_others_its_command_is_run(
    error: type[Exception], commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*args: Any, **parts: Any) -> None:
        raise error("not as in 3.8.8")

    monkeypatch.setattr("prefect.runner._flow_run_executor.FlowRunExecutorContext", other)
    supervising.main()
    assert commands == [["prefect", "flow-run", "execute"]]


STEP = "prefect.deployments.steps.set_working_directory"


@pytest.mark.parametrize(
    ("registered", "theirs"),
    [
        ({"entrypoint": "words.py:words", "path": "."}, True),
        ({"entrypoint": "words.py:words", "path": None}, True),
        ({"entrypoint": "words.py:words", "path": "flows/shop"}, True),
        ({"entrypoint": "words.py:words", "path": "/opt/flows"}, False),
        ({"entrypoint": "words.py:words", "path": "shop", "storage_document_id": UUID(RUN)}, False),
        ({"entrypoint": "shop.words.count", "path": "."}, False),
        ({"entrypoint": "words.py:words", "path": ".", "pull_steps": [{STEP: {"directory": "/opt/flows"}}]}, False),
        ({"entrypoint": "words.py:words", "pull_steps": [{STEP: {"directory": "shop"}}]}, True),
        ({"entrypoint": "words.py:words", "pull_steps": [{"prefect.deployments.steps.git_clone": {}}]}, False),
    ],
)
def test_code_that_is_named_relative_to_the_images_folder_is_left_to_prefects_command(
    registered: dict[str, Any], theirs: bool
) -> None:
    found = SimpleNamespace(**{"path": None, "pull_steps": [], "storage_document_id": None, **registered})
    assert supervising.needs_workspace(found) is theirs  # type: ignore[arg-type]
