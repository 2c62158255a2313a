"""Bulk video ingest: 20,000 ids in one job, what is in flight, what memory does; and what a video costs, three ways.

The videos are real MP4 files, tiny, a few distinct ones under many names. What is in flight is told by the calls
themselves and by the server's records, not by what is measured; memory is the resident set of the parent's process and
of each child's, sampled from outside.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil

from benchmarks.metering import Meter
from benchmarks.table import Row
from orchestrator.stack import Stack

JOB, BATCH, AT_ONCE = 20_000, 2_500, 2
EACH = {"calls": 600, "tasks": 200, "processes": 600}
SAMPLE_SECONDS = 0.5
GROWTH = 1.10
ROOT = Path(__file__).parent.parent


# ---------------------------------------------------------------------- one large job


@dataclass
class Samples:
    """Resident memory over the life of each process, in MB."""

    parent: list[float] = field(default_factory=list)
    children: dict[int, list[float]] = field(default_factory=dict)

    def growth(self, at_least: int) -> tuple[float, float]:
        """Last quarter against the second one: of the parent, and of the child that grew most."""
        lived = [series for series in self.children.values() if len(series) >= at_least]
        return growth(self.parent), max(map(growth, lived), default=0.0)


def growth(series: list[float]) -> float:
    quarter = len(series) // 4
    if not quarter:
        return 0.0
    return statistics.mean(series[-quarter:]) / statistics.mean(series[quarter : 2 * quarter])


@contextmanager
def sampled(parent: int, witness: Path) -> Iterator[Samples]:
    """Memory of the parent's process and of those that a witness names, until the end of the block."""
    samples, over = Samples(), threading.Event()

    def look() -> None:
        while not over.wait(SAMPLE_SECONDS):
            read(parent, samples.parent)
            for file in witness.glob("of-*"):
                pid = int(file.name.removeprefix("of-"))
                read(pid, samples.children.setdefault(pid, []))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def read(pid: int, series: list[float]) -> None:
    try:
        series.append(psutil.Process(pid).memory_info().rss / (1 << 20))
    except psutil.NoSuchProcess:
        pass


def job(home: str, videos: int, batch_size: int, at_once: int) -> dict[str, Any]:
    """Run the job in this process, as a parent."""
    from orchestrator import orchestrate_sync

    began, before = time.perf_counter(), time.process_time()
    report = orchestrate_sync(
        "bench-videos/default",
        (f"v-{n:05}" for n in range(videos)),
        batch_size=batch_size,
        max_in_flight=at_once,
        parameters={"source": f"{home}/videos", "target": f"{home}/out", "witness": f"{home}/witness"},
        storage=f"{home}/jobs",
        job_id=Path(home).name,
        on_failure="return",
    )
    return {"wall": time.perf_counter() - began, "cpu": time.process_time() - before,
            "succeeded": report.items.succeeded, "seen": report.max_in_flight_seen}  # fmt: skip


def large_job(stack: Stack, videos: int, batch_size: int, at_once: int, at_least: int) -> list[Row]:
    from benchmarks.video_flows import VIDEOS, counts
    from tests.videos import library

    with tempfile.TemporaryDirectory(prefix="bench-videos-") as home:
        library(Path(home) / "videos", videos)
        witness = Path(home) / "witness"
        witness.mkdir()
        command = [sys.executable, "-m", "benchmarks.videos", "job", home, str(videos), str(batch_size), str(at_once)]
        parent = subprocess.Popen(command, cwd=ROOT, env=stack.environment, stdout=subprocess.PIPE, text=True)
        with sampled(parent.pid, witness) as samples:
            out, _ = parent.communicate()
        if parent.returncode:
            raise RuntimeError(f"the job's parent ended with {parent.returncode}")
        said = json.loads(out.splitlines()[-1])
        outputs = len(list((Path(home) / "out").iterdir()))
        if (said["succeeded"], outputs) != (videos, 2 * videos):
            raise RuntimeError(f"{said['succeeded']} of {videos} videos, {outputs} files")
        left, most, calls = counts(witness / "all")
        if (left, calls) != (0, videos):
            raise RuntimeError(f"{calls} calls for {videos} videos, {left} of them never ended")
        in_child = max(counts(file)[1] for file in witness.glob("of-*"))
        children = most_children(stack, Path(home).name)
        parent_grew, child_grew = samples.growth(at_least)
        largest = max((max(series) for series in samples.children.values() if series), default=0.0)
    what = f"{videos:,} videos, {batch_size:,} per child run, {at_once} at once"

    def bound(measure: str, found: float, allowed: float) -> Row:
        return Row(
            "videos", f"{what}: {measure}", found, allowed, "allowed", wanted="<= allowed", holds=found <= allowed
        )

    return [
        Row("videos", f"{what}: videos per second", videos / said["wall"]),
        Row("videos", f"{what}: CPU ms per video in the parent", said["cpu"] / videos * 1000),
        bound("most child runs at once, by the server", children, at_once),
        bound("most calls at once in one child run", in_child, VIDEOS),
        bound("most calls at once", most, at_once * VIDEOS),
        bound("memory of the parent, last quarter / second", parent_grew, GROWTH),
        bound("memory of the child that grew most, last quarter / second", child_grew, GROWTH),
        Row("videos", f"{what}: most memory of the parent, MB", max(samples.parent, default=0.0)),
        Row("videos", f"{what}: most memory of a child, MB", largest),
    ]


def most_children(stack: Stack, job_id: str) -> int:
    """Most child runs that were there and not over at the same moment, by the server's records."""
    runs = stack.request("POST", "/flow_runs/filter", {"flow_runs": {"tags": {"all_": [f"job:{job_id}"]}}})
    moments = sorted([(run["end_time"], -1) for run in runs] + [(run["created"], 1) for run in runs])
    return max(accumulate(step for _, step in moments))


# ---------------------------------------------------------------------- what a video costs


def inside(which: str, home: str, videos: int) -> dict[str, float]:
    """Ingest videos in one flow run in this process."""
    from deployments import video_ingest as example

    flow = {"calls": example.video_ingest, "tasks": example.video_ingest_tasks,
            "processes": example.video_ingest_processes}[which]  # fmt: skip
    ids = [f"v-{n:05}" for n in range(videos)]
    began, before = time.perf_counter(), used()
    done = flow(items=ids, source=f"{home}/videos", target=f"{home}/{which}")
    return {"done": sum(o["outcome"] == "succeeded" for o in done), "wall": time.perf_counter() - began,
            "cpu": used() - before}  # fmt: skip


def used() -> float:
    """CPU seconds of this process and of those that it started and that are over."""
    times = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(t.ru_utime + t.ru_stime for t in times)


def costs(stack: Stack, each: dict[str, int]) -> list[Row]:
    from tests.videos import library

    meter, rates, spent = Meter(stack), dict[str, float](), dict[str, float]()
    quiet = {"PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "WARNING"}  # as the deployment has it
    with tempfile.TemporaryDirectory(prefix="bench-videos-") as home:
        library(Path(home) / "videos", max(each.values()))
        for which, n in each.items():
            before = meter.read()
            command = [sys.executable, "-m", "benchmarks.videos", which, home, str(n)]
            done = subprocess.run(command, cwd=ROOT, env=stack.environment | quiet, text=True, capture_output=True,
                                  check=False)  # fmt: skip
            if done.returncode:
                raise RuntimeError(f"{which}: {done.stderr[-2000:]}")
            meter.settle()
            said = json.loads(done.stdout.splitlines()[-1])
            if said["done"] != n:
                raise RuntimeError(f"{which}: {said['done']} of {n} videos")
            rates[which] = n / said["wall"]
            spent[which] = (said["cpu"] + (meter.read() - before).server) / n * 1000
    names = {"calls": "a call in a thread", "tasks": "a task run", "processes": "a call in a process"}
    rows = []
    for which in each:
        base = "" if which == "calls" else "a call in a thread"
        for measure, found in (("videos per second in one run", rates), ("CPU ms per video, server included", spent)):
            other, ratio = (found["calls"], found[which] / found["calls"]) if base else (None, None)
            rows.append(Row("videos", f"{names[which]} per video: {measure}", found[which], other, base, ratio))
    return rows


def rows(stack: Stack, *, videos: int = JOB, batch_size: int = BATCH, at_once: int = AT_ONCE, at_least: int = 20,
         each: dict[str, int] = EACH) -> list[Row]:  # fmt: skip
    """All measurements; `at_least` samples of a child's memory make it count."""
    return large_job(stack, videos, batch_size, at_once, at_least) + (costs(stack, each) if each else [])


if __name__ == "__main__":
    which, home, *numbers = sys.argv[1:]
    given = [int(n) for n in numbers]
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    print(json.dumps(job(home, *given) if which == "job" else inside(which, home, *given)))
