"""Fixtures for tests on the real thing: one Prefect server and process worker per session, shared.

* `stack`: the shared stack, and this process is its client while the test runs: `get_client()`, `run_deployment` and
  subprocesses that inherit `os.environ` all reach it. Work pool: `test-pool`, no limit.
* `session_stack`: the same stack for session- and module-scoped fixtures, without making this process a client.
* `stack_factory`: `stack_factory(**options)` starts a stack of the test's own (for tests that kill a server or worker),
  stopped after the test.
* `stack_options`: `stack_options()` gives what else a stack of these tests is started with: nothing (SQLite); with
  `ORCHESTRATOR_TEST_DATABASE=postgres` an empty PostgreSQL database and a Redis number of its own.

Tests share the server: name deployments, pools and jobs after the test, and clean up what runs.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from orchestrator.stack import Stack
from tests.postgres import postgres_server
from tests.redis_server import redis_server
from tests.redis_server import required as redis_required

POOL = "test-pool"
DATABASE = "ORCHESTRATOR_TEST_DATABASE"
"""`postgres`: stacks of the tests stand on PostgreSQL and Redis. Otherwise: on SQLite."""

StackOptions = Callable[[], dict[str, str]]


def on_postgres(servers: ExitStack, folder: Path) -> StackOptions:
    """A PostgreSQL and a Redis, ended with `servers`; each call gives an empty part of both."""
    redis_required()
    postgres = servers.enter_context(postgres_server())
    redis = servers.enter_context(redis_server(folder))
    numbers = itertools.count()

    def take() -> dict[str, str]:
        number = next(numbers)
        postgres.create(f"stack_{number}")
        return {"database": postgres.address(f"stack_{number}"), "redis": redis.removesuffix("0") + str(number)}

    return take


@pytest.fixture(scope="session")
def stack_options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackOptions]:
    with ExitStack() as servers:
        wanted = os.environ.get(DATABASE, "sqlite")
        assert wanted in ("sqlite", "postgres"), f"{DATABASE}={wanted}: sqlite or postgres"
        yield on_postgres(servers, tmp_path_factory.mktemp("redis")) if wanted == "postgres" else dict


@pytest.fixture(scope="session")
def session_stack(tmp_path_factory: pytest.TempPathFactory, stack_options: StackOptions) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack"), pool=POOL, **stack_options()) as stack:
        yield stack


@pytest.fixture
def stack(session_stack: Stack) -> Iterator[Stack]:
    with session_stack.activated():
        yield session_stack


@pytest.fixture
def stack_factory(
    tmp_path_factory: pytest.TempPathFactory, stack_options: StackOptions
) -> Iterator[Callable[..., Stack]]:
    with ExitStack() as stacks:

        def start(**options: Any) -> Stack:
            options = {"pool": POOL, **stack_options(), **options}
            return stacks.enter_context(Stack(tmp_path_factory.mktemp("own-stack"), **options))

        yield start
