"""Task groups: the futures that a function of one item returns, and what they come to.

A flow that returns a future gives its caller the state of that task run, which is resolved alike.

A task whose upstream failed never begins, and its future only says "Upstream task run 'id' did not reach a 'COMPLETED'
state" (raised as `UnfinishedRun`): nobody learns what failed. The futures that an item submitted are therefore
remembered until its result is there, and the first failure is looked up among them.
Source: prefect task_engine.py, utilities/engine/__init__.py `resolve_to_final_result`, 3.8.8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from prefect.client.schemas.objects import State
from prefect.exceptions import UnfinishedRun
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner

_UPSTREAM = re.compile(r"Upstream task run '([0-9a-f-]{36})'")
_MOST_STEPS = 1000
_submitted: ContextVar[dict[str, PrefectFuture[Any]] | None] = ContextVar("submitted", default=None)


def remember(runner: TaskRunner[Any]) -> None:
    """From now on the futures of what that task runner is given are remembered, per item."""
    submit = runner.submit

    def remembering(*args: Any, **kwargs: Any) -> PrefectFuture[Any]:
        future: PrefectFuture[Any] = submit(*args, **kwargs)
        if (known := _submitted.get()) is None:
            known = {}
            _submitted.set(known)
        elif len(known) >= _MOST_STEPS:  # a function that keeps its futures to itself
            known.clear()
        known[str(future.task_run_id)] = future
        return future

    runner.submit = remembering  # type: ignore[method-assign]


def holds_futures(value: Any) -> bool:
    """There is a future, or a state, at the top of it or in a mapping, list or tuple."""
    if isinstance(value, PrefectFuture | State):
        return True
    if isinstance(value, Mapping):
        return any(isinstance(member, PrefectFuture | State) for member in value.values())
    return isinstance(value, list | tuple) and any(isinstance(member, PrefectFuture | State) for member in value)


def resolve(value: Any) -> Any:
    """The value with its futures replaced by their results; waits for all of them.

    Raises:
        Exception: what the first failed task raised, also where it is an upstream of a future that never began.
    """
    try:
        if not holds_futures(value):
            return value
        if isinstance(value, PrefectFuture | State):
            return _result(value)
        members = list(value.values() if isinstance(value, Mapping) else value)
        for member in members:
            if isinstance(member, PrefectFuture):
                member.wait()  # all of them, before the first failure is raised: none is left running unseen
        got = [_result(member) if isinstance(member, PrefectFuture | State) else member for member in members]
        return dict(zip(value, got, strict=True)) if isinstance(value, Mapping) else got
    finally:
        if (known := _submitted.get()) is not None:
            known.clear()


def _result(future: PrefectFuture[Any] | State[Any]) -> Any:
    if isinstance(future, State):
        return future.result(raise_on_failure=True)
    try:
        return future.result()
    except UnfinishedRun:
        failed = _failed_before(future)
        if failed is None:
            raise
        return failed.result()


def _failed_before(future: PrefectFuture[Any]) -> PrefectFuture[Any] | None:
    """The future whose failure kept this one from beginning; None when it is not known."""
    known, found = _submitted.get() or {}, None
    while (match := _UPSTREAM.search(str(future.state.message))) and (upstream := known.get(match[1])) is not None:
        future = found = upstream
    return found
