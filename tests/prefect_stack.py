"""Fixtures for tests on the real thing: one Prefect server and process worker per session, shared.

* `stack`: the shared stack, and this process is its client while the test runs: `get_client()`, `run_deployment` and
  subprocesses that inherit `os.environ` all reach it. Work pool: `test-pool`, no limit.
* `session_stack`: the same stack for session- and module-scoped fixtures, without making this process a client.
* `stack_factory`: `stack_factory(**options)` starts a stack of the test's own (for tests that kill a server or worker),
  stopped after the test.

Tests share the server: name deployments, pools and jobs after the test, and clean up what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from orchestrator.stack import Stack

POOL = "test-pool"


@pytest.fixture(scope="session")
def session_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack"), pool=POOL) as stack:
        yield stack


@pytest.fixture
def stack(session_stack: Stack) -> Iterator[Stack]:
    with session_stack.activated():
        yield session_stack


@pytest.fixture
def stack_factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Stack]]:
    with ExitStack() as stacks:

        def start(**options: Any) -> Stack:
            options.setdefault("pool", POOL)
            return stacks.enter_context(Stack(tmp_path_factory.mktemp("own-stack"), **options))

        yield start
