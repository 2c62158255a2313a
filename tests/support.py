"""What tests of every kind share: waiting for a condition with a deadline, never sleep-and-assert."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

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
