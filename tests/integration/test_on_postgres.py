"""A few whole jobs on a server with PostgreSQL and Redis; `make test-postgres` runs all of them that way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from orchestrator.stack import Stack
from tests.integration import test_job_ends, test_job_resume, test_job_stops
from tests.integration.job_support import MARKS
from tests.prefect_stack import DATABASE, POOL, on_postgres

pytestmark = [
    *MARKS,
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get(DATABASE) == "postgres", reason="all tests run on PostgreSQL already"),
]


@pytest.fixture(scope="module")
def session_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """In this file the shared stack is another one."""
    with ExitStack() as servers:
        options = on_postgres(servers, tmp_path_factory.mktemp("redis"))()
        with Stack(tmp_path_factory.mktemp("stack"), pool=POOL, **options) as stack:
            yield stack


def test_the_shared_stack_is_on_postgres(stack: Stack) -> None:
    assert str(stack.backing).startswith("PostgreSQL at 127.0.0.1:")
    assert not list(stack.home.glob("*.db"))


# What happens, and what people see on the parent's page; a trip; a parent that died.
test_a_job_runs_and_tells_on_its_page = test_job_ends.test_a_job_in_ones_own_async_flow
test_a_tripped_parent_says_why = test_job_stops.test_a_tripped_parent_ends_failed_and_says_why
test_a_job_whose_parent_died_goes_on = test_job_resume.test_a_new_run_of_the_parent_deployment_with_that_job_id_goes_on
