"""Isolation of all tests: nobody's Prefect profile, server or API key; no Prefect server unless a test asks for one."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Tests share the machine with servers: how long an example takes says nothing about the code.
settings.register_profile("shared-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared-machine")

# Before anything imports Prefect: it reads its settings once, at import.
for _name in [
    n
    for n in os.environ
    if n.startswith(("PREFECT_", "ORCHESTRATOR_")) and not n.startswith(("ORCHESTRATOR_REQUIRE_", "ORCHESTRATOR_TEST_"))
]:
    del os.environ[_name]
_HOME = Path(tempfile.mkdtemp(prefix="orchestrator-tests-"))
os.environ.update(
    PREFECT_HOME=str(_HOME),
    PREFECT_PROFILES_PATH=str(_HOME / "profiles.toml"),
    PREFECT_SERVER_EPHEMERAL_ENABLED="false",  # a forgotten API URL is an error, not a server of its own
    PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW="ignore",
    PREFECT_CLI_PROMPT="false",
    DO_NOT_TRACK="1",
)

pytest_plugins = ["tests.prefect_stack", "tests.s3server"]

_STACK_FIXTURES = {"stack", "session_stack", "stack_factory"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses a real stack is marked `real`, so that `-m "not real"` leaves the quick tests."""
    for item in items:
        if _STACK_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.real)


@pytest.fixture(autouse=True)
def _loggers_as_they_were_made() -> None:
    """A test that wants less said must not take the words from the next one."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.startswith("orchestrator") and isinstance(logger, logging.Logger):
            logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session", autouse=True)
def _remove_home() -> Iterator[None]:
    yield
    shutil.rmtree(_HOME, ignore_errors=True)
