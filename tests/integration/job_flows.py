"""The flows that the integration tests fan out over, deployed as an ordinary project's: this file, by path.

Items say themselves what becomes of them, and every item writes down when it began and ended, in which process and
run: the tests' own account, which the project's must agree with.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from orchestrator import ItemContext, batch_flow, orchestrate, orchestrate_sync

TRACE = "items.jsonl"
GATE_SECONDS = 90.0


def note(trace: str, **facts: Any) -> None:
    """One line in one write: lines of many processes do not mix."""
    line = json.dumps({"at": time.time(), "pid": os.getpid(), "run": str(flow_run.id), **facts}) + "\n"
    handle = os.open(Path(trace) / TRACE, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def act(item: dict[str, Any]) -> Any:
    """Do what the item says, in this order: sleep, eat, wait for a file, die (once), fail; else return its `n`."""
    time.sleep(item.get("seconds", 0))
    if megabytes := item.get("eat"):
        len(b"x" * (megabytes << 20))
    if gate := item.get("gate"):
        end = time.monotonic() + GATE_SECONDS
        while not Path(gate).exists() and time.monotonic() < end:
            time.sleep(0.02)
    match item.get("die"):
        case "signal":
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
        case "segfault":
            ctypes.string_at(0)
        case True:
            os._exit(137)
    if (marker := item.get("die_once")) and _is_first(Path(marker)):
        os.kill(os.getpid(), signal.SIGKILL)
    if fail := item.get("fail"):
        raise {"ValueError": ValueError, "TimeoutError": TimeoutError}[fail](f"item {item['n']} is bad")
    return item["n"]


def _is_first(marker: Path) -> bool:
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def work_on(item: dict[str, Any], context: ItemContext, trace: str) -> Any:
    """Do what the item says, between two lines of account."""
    note(trace, event="start", index=context.index, batch=context.batch, attempt=context.attempt)
    result = act(item)
    note(trace, event="end", index=context.index, batch=context.batch, attempt=context.attempt)
    return result


@batch_flow(name="it-work")
def work(item: dict[str, Any], context: ItemContext, *, trace: str) -> Any:
    """Works on one item."""
    return work_on(item, context, trace)


@batch_flow(name="it-wide", item_concurrency=2)
def wide(item: dict[str, Any], context: ItemContext, *, trace: str) -> Any:
    """Works on two items at once."""
    return work_on(item, context, trace)


@flow(name="it-own")
async def own(deployment: str, items: list[Any], asked: dict[str, Any]) -> None:
    """Somebody's own flow around a job."""
    await orchestrate(deployment, items, **asked)


@flow(name="it-own-sync")
def own_sync(deployment: str, items: list[Any], asked: dict[str, Any]) -> None:
    """The same, not async."""
    orchestrate_sync(deployment, items, **asked)


@flow(name="it-list")
def takes_a_list(ids: list[Any], trace: str, fail_on: Any = None) -> None:
    """An existing flow that takes many ids."""
    for id_ in ids:
        note(trace, event="start", index=id_)
    if fail_on in ids:
        raise ValueError(f"{fail_on} is bad")


@flow(name="it-one")
def takes_one(video: dict[str, Any], trace: str) -> None:
    """An existing flow that takes one thing."""
    note(trace, event="start", index=video["n"])
    act(video)


@flow(name="it-parameters")
def takes_parameters(name: str, times: int, trace: str) -> None:
    """An existing flow whose parameters are the item."""
    note(trace, event="start", index=name, times=times)


@batch_flow(name="it-mended")
def mended(item: dict[str, Any], context: ItemContext, *, trace: str) -> Any:
    """Works on the same items as `work`, and does not mind bad ones."""
    note(trace, event="start", index=context.index, batch=context.batch, attempt=context.attempt)
    return item["n"]
