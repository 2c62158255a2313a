"""A Prefect that asks for a password, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.stack import Stack
from tests.e2e.conftest import Program

HERE = Path(__file__).parent
AUTH = "admin:open-sesame*(7]$"
"""The password has what regular expressions, URLs and markdown give a meaning to."""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Server, worker and runs with basic auth on; the deployments of this folder's `flows`, and the parent."""
    settings = {"PREFECT_SERVER_API_AUTH_STRING": AUTH, "PREFECT_LOGGING_LEVEL": "DEBUG"}
    with Stack(tmp_path_factory.mktemp("guarded"), settings=settings) as stack:
        yield stack


@pytest.fixture
def program(guarded: Stack, tmp_path: Path) -> Program:
    return Program(guarded.environment, tmp_path)
