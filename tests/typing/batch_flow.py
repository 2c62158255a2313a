"""How `batch_flow` types; checked by mypy, never run."""

from __future__ import annotations

from typing import Any, assert_type

from prefect import Flow, task

from orchestrator.flows import ItemContext, batch_flow


def process(item: str, context: ItemContext, *, size: int = 3) -> dict[str, int]:
    return {item: size + context.index}


made = batch_flow(process, item_concurrency=8, item_timeout_seconds=2, fail_run_when="failed > 0")
assert_type(made, Flow[..., Any])
made(items=["a"], size=2)


@batch_flow
def bare(item: str) -> str:
    return item


assert_type(bare, Flow[..., Any])


@batch_flow(concurrency_limits=["service"], executor="processes")
def decorated(item: str) -> str:
    return item


assert_type(decorated, Flow[..., Any])


@batch_flow
async def asynchronous(item: str) -> str:
    return item


assert_type(asynchronous, Flow[..., Any])


@batch_flow
@task
def tasked(item: str) -> str:
    return item


assert_type(tasked, Flow[..., Any])

batch_flow(process, item_retries=2, item_retry_if=lambda error: isinstance(error, TimeoutError))
batch_flow(process, item_retry_if="always")  # type: ignore[call-overload]
batch_flow(process, executor="fibres")  # type: ignore[call-overload]
batch_flow(process, item_concurrency="8")  # type: ignore[call-overload]
