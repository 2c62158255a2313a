"""What tests of every kind share: waiting for a condition with a deadline, never sleep-and-assert."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def eventually(predicate: Callable[[], T], deadline_seconds: float, what: str = "the condition") -> T:
    """The first true value of `predicate`, asked every 50 ms; fails with `what` once the deadline has passed."""
    end = time.monotonic() + deadline_seconds
    while True:
        if value := predicate():
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not hold within {deadline_seconds} s (last value: {value!r})")
        time.sleep(0.05)


async def aeventually(predicate: Callable[[], Awaitable[T]], deadline_seconds: float, what: str = "the condition") -> T:
    """As `eventually`, for a coroutine function; yields to the loop between askings."""
    end = time.monotonic() + deadline_seconds
    while True:
        if value := await predicate():
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not hold within {deadline_seconds} s (last value: {value!r})")
        await asyncio.sleep(0.05)


async def until_one_ends(*works: Coroutine[Any, Any, Any]) -> None:
    """Do them at the same time; the others are cancelled as soon as one has ended."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def end_other_tasks() -> None:
    """Cancel every other task of this loop and see it end; one that a last connection still begins, too."""
    while True:
        await asyncio.sleep(0.01)
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
