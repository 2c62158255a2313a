"""Items that are groups of tasks: what failed first is what the item failed of."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner

from orchestrator.flows import ItemsFailedError, batch_flow

pytestmark = [
    pytest.mark.usefixtures("stack"),
    # Prefect itself leaves a socket open after an async flow, an empty one included (3.8.8).
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]


@task
def first(item: int) -> int:
    if item == 1:
        raise ValueError("item 1 has no first step")
    return item


@task
def second(item: int) -> int:
    if item == 2:
        raise KeyError("item 2 has no second step")
    return item


@task
def third(item: int) -> int:
    return item + 1


def last_of_a_chain(item: int) -> Any:
    return third.submit(second.submit(first.submit(item)))


def all_of_a_chain(item: int) -> Any:
    begun = first.submit(item)
    return {"third": third.submit(second.submit(begun)), "first": begun}


async def last_of_a_chain_async(item: int) -> Any:
    return third.submit(second.submit(first.submit(item)))


@pytest.mark.parametrize("group", [last_of_a_chain, all_of_a_chain, last_of_a_chain_async])
def test_an_item_fails_of_the_step_that_failed_not_of_the_one_that_never_began(group: Any) -> None:
    made = batch_flow(group, item_concurrency=3, task_runner=ThreadPoolTaskRunner(max_workers=9))
    items = [1, 2, 3, 1]
    state = asyncio.run(made(items=items, return_state=True)) if made.isasync else made(items=items, return_state=True)

    outcomes = state.result(raise_on_failure=False)
    outcomes = outcomes.result if isinstance(outcomes, ItemsFailedError) else outcomes
    assert [o["outcome"] for o in outcomes] == ["failed", "failed", "succeeded", "failed"]
    for failed in (outcomes[0], outcomes[3]):
        assert failed["error"] == {"type": "ValueError", "text": "item 1 has no first step"}
    assert "item 2 has no second step" in outcomes[1]["error"]["text"]
    assert outcomes[2]["result"] in (4, {"third": 4, "first": 3})


def test_a_chain_longer_than_the_workers_still_ends() -> None:
    """Each step waits in a worker, in the order of submission, so that the one that can go on always has one."""
    made = batch_flow(last_of_a_chain, name="narrow", item_concurrency=4, task_runner=ThreadPoolTaskRunner(2))
    assert [o["result"] for o in made(items=[3, 4, 5, 6])] == [4, 5, 6, 7]


def test_a_flow_per_item_may_return_a_future() -> None:
    made = batch_flow(flow(last_of_a_chain, name="one-chain"), name="flow-per-item")
    assert [o["result"] for o in made(items=[3, 4])] == [4, 5]
