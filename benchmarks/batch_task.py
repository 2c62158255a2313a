"""`BatchTask` against `Task.map` and a barrier loop: uneven durations, and memory; `python -m benchmarks batch_task`.

Time: runs that sleep so long as was drawn, `SIZE` at a time, in flows on a real server, in one process and in turns.
What theory says of the same durations: a window takes as long as `SIZE` people who each take the next one from a pile,
a barrier loop as long as the slowest of each `SIZE` added up.

Memory: the largest resident set of the process of a flow with that many runs of a task that does nothing, its numbers
from a generator. No claim: one future per run is kept for the caller, and Prefect keeps each run's context, with its
arguments, until the server has taken the run's events, which lags behind runs that do nothing.
Source: prefect _internal/concurrency/services.py `_QueueServiceBase._context_cache`, 3.8.8.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from heapq import heapify, heapreplace
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner

from benchmarks.table import Row
from orchestrator.stack import Stack
from orchestrator.tasks import BatchTask

RUNS, SIZE, ROUNDS = 160, 8, 2
LEAST, MOST = 0.05, 0.95  # seconds of one run
MEMORY_RUNS, MEMORY_SIZE = 20_000, 8
OF_THEORY = 0.9


def drawn(count: int) -> list[float]:
    chance = random.Random(1)
    return [chance.uniform(LEAST, MOST) for _ in range(count)]


def window_seconds(durations: list[float], size: int) -> float:
    """How long a window takes over them when nothing but the durations takes time."""
    ends = [0.0] * size
    heapify(ends)
    for duration in durations:
        heapreplace(ends, ends[0] + duration)
    return max(ends)


def barrier_seconds(durations: list[float], size: int) -> float:
    return sum(max(durations[first : first + size]) for first in range(0, len(durations), size))


# ---------------------------------------------------------------------- in a process of their own


@task
def sleep(seconds: float) -> None:
    time.sleep(seconds)


@task
def nothing(_: int) -> None: ...


def sides(size: int) -> dict[str, Callable[[list[float]], Any]]:
    def loop(durations: list[float]) -> None:
        for first in range(0, len(durations), size):
            wait(sleep.map(durations[first : first + size]))

    return {
        "window": lambda durations: wait(BatchTask(sleep, size).map(iter(durations))),
        "barrier": lambda durations: wait(BatchTask(sleep, size, barrier=True).map(durations)),
        "map": lambda durations: wait(sleep.map(durations)),
        "loop": loop,
    }


def timed(count: int, size: int, rounds: int) -> dict[str, float]:
    """Wall seconds of each side, over all rounds."""
    durations, found = drawn(count), dict.fromkeys(sides(size), 0.0)
    runner: Any = ThreadPoolTaskRunner(max_workers=size)
    for _ in range(rounds):
        for name, body in sides(size).items():

            @flow(name=f"bench-{name}", task_runner=runner)
            def run(body: Callable[[list[float]], Any] = body) -> float:
                began = time.monotonic()
                body(durations)
                return time.monotonic() - began

            found[name] += run()
    return found


def remembered(which: str, count: int) -> dict[str, float]:
    """Peak memory, in MB, and futures kept."""
    runner: Any = ThreadPoolTaskRunner(max_workers=MEMORY_SIZE)

    @flow(name="bench-memory", task_runner=runner)
    def run() -> int:
        if which == "window":
            futures = BatchTask(nothing, MEMORY_SIZE).map(n for n in range(count))
        else:
            futures = nothing.map(range(count))
        wait(futures)
        return len(futures)

    kept = run()
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "kept": kept}


# ---------------------------------------------------------------------- the measurement


def _ask(words: list[Any], environment: dict[str, str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.batch_task", *map(str, words)],
        cwd=Path(__file__).parent.parent, env=environment, text=True, check=False, capture_output=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{words}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def time_rows(stack: Stack, *, runs: int = RUNS, size: int = SIZE, rounds: int = ROUNDS) -> list[Row]:
    took = _ask(["time", runs, size, rounds], stack.environment)
    durations = drawn(runs)
    theory = barrier_seconds(durations, size) / window_seconds(durations, size)
    what = f"{runs} runs of {LEAST:g}-{MOST:g} s, {size} at a time: seconds"

    def line(mine: str, other: str, other_is: str, wanted: str = "", least: float = 0.0) -> Row:
        ratio = took[other] / took[mine]
        return Row("batch_task", f"{what}, {mine}", took[mine] / rounds, took[other] / rounds, other_is, ratio,
                   wanted, ratio >= least if wanted else None)  # fmt: skip

    wanted = f"other / ours >= {OF_THEORY:g} of theory's {theory:.2f}"
    return [
        line("window", "barrier", "BatchTask(barrier=True)", wanted, OF_THEORY * theory),
        line("window", "loop", "loop of map and wait", wanted, OF_THEORY * theory),
        line("window", "map", f"Task.map on {size} threads", "other / ours >= 0.9", 0.9),
    ]


def memory_rows(stack: Stack, *, runs: int = MEMORY_RUNS) -> list[Row]:
    quiet = stack.environment | {"PREFECT_LOGGING_LEVEL": "ERROR"}
    base = _ask(["memory", "window", MEMORY_SIZE], quiet)["peak"]
    mine, other = (_ask(["memory", which, runs], quiet) for which in ("window", "map"))
    what, other_is = f"{runs:,} elements of a generator: ", "Task.map of a range"
    mine_kb, other_kb = ((side["peak"] - base) * 1024 / runs for side in (mine, other))
    return [
        Row("batch_task", f"{what}peak memory, MB ({base:.0f} with {MEMORY_SIZE} elements)", mine["peak"],
            other["peak"], other_is),
        Row("batch_task", f"{what}kB more per element", mine_kb, other_kb, other_is, mine_kb / other_kb),
        Row("batch_task", f"{what}futures kept at the end", mine["kept"], other["kept"], other_is),
    ]  # fmt: skip


def rows(stack: Stack) -> list[Row]:
    return time_rows(stack) + memory_rows(stack)


def main(what: str, *words: str) -> None:
    found = timed(*map(int, words)) if what == "time" else remembered(words[0], int(words[1]))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
