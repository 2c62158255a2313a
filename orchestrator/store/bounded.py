"""A job folder that does not answer must not hold up whoever has to act.

A client of an object store asks again and again by itself: one write to an address that takes connections and never
answers lasts five minutes. Source: measured, s3fs 2026.9 with botocore's defaults.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def within(seconds: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What the function gives, if it does so in that time; else it goes on by itself, and nobody hears how it ends.

    Raises:
        TimeoutError: it takes longer.
        Whatever the function raises until then.
    """
    future: Future[T] = Future()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            future.set_result(context.run(function, *args, **kwargs))
        except BaseException as e:  # noqa: BLE001 - it is raised in the caller
            future.set_exception(e)

    threading.Thread(target=work, daemon=True, name="job-folder").start()
    try:
        return future.result(timeout=seconds)
    except TimeoutError as e:
        if future.done():
            raise
        raise TimeoutError(f"the job folder did not answer within {seconds:g} s") from e
