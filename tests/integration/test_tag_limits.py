"""What the page on videos says of tags: a limit on a tag acts on task runs that carry it, and on nothing else.

A limit of 0 is what shows it at once: Prefect aborts the task run that meets it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from prefect import tags, task
from prefect.client.orchestration import get_client

from orchestrator import batch_flow
from orchestrator.stack import Stack
from tests.integration.job_support import MARKS

pytestmark = MARKS


@pytest.fixture
def forbidden(stack: Stack) -> Iterator[str]:
    """A tag with which no task run may run."""
    tag = f"tag-{uuid.uuid4().hex[:8]}"
    with get_client(sync_client=True) as client:
        client.create_concurrency_limit(tag=tag, concurrency_limit=0)
        yield tag
        client.delete_concurrency_limit_by_tag(tag=tag)


def outcomes(flow: Any, tag: str) -> list[str]:
    with tags(tag):  # the flow run carries it
        state = flow(items=[1], return_state=True)
    data = state.result(raise_on_failure=False)
    return [item["outcome"] for item in getattr(data, "outcomes", data)]


def test_a_tag_on_a_flow_run_limits_no_plain_call(forbidden: str) -> None:
    def plain(item: int) -> int:
        return item

    assert outcomes(batch_flow(plain, name="tagged-calls"), forbidden) == ["succeeded"]


def test_a_limit_on_a_tag_holds_the_task_runs_that_carry_it(forbidden: str) -> None:
    @task(tags=[forbidden])
    def held(item: int) -> int:
        return item

    assert outcomes(batch_flow(held, name="tagged-tasks"), "another") == ["failed"]


def test_a_tag_of_a_flow_run_is_on_the_task_runs_in_it(forbidden: str) -> None:
    @task
    def inherits(item: int) -> int:
        return item

    assert outcomes(batch_flow(inherits, name="inherited-tags"), forbidden) == ["failed"]
