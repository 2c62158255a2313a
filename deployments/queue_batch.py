"""Ids that arrive in Redis all day long: a short job every minute takes some, and acknowledges them by their outcome.

    <queue>               list    ids, pushed at its right end by whoever has work
    <queue>:taken:<job>   list    what that job took; an id leaves it when its outcome is known, for one of:
    <queue>:dead          list      failed: {"id", "error", "job"}
    <queue>                         not started, or nobody knows: back to its left end, to be taken again
    <queue>:jobs          set     jobs that have a taken list
    <queue>:alive:<job>   string  expires some seconds after the job's parent run has died

Whoever finds a job whose parent run is dead resumes it, so an id is taken, run and acknowledged whatever dies when.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from orchestrator import (
    ItemOutcome,
    JobConflictError,
    JobFolder,
    JobNotFoundError,
    open_job,
    orchestrate_sync,
    resume_sync,
)

# Both are one step for Redis: nothing comes between, and doing it twice is doing it once.
TAKE_PLACE = """
if redis.call('SCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('SET', KEYS[2], 1, 'EX', ARGV[3])
return redis.call('SADD', KEYS[1], ARGV[1])
"""
MOVE = """
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
if ARGV[2] ~= '' then redis.call(ARGV[2], KEYS[2], ARGV[3]) end
return 1
"""


@dataclass(frozen=True)
class Queue:
    """A queue and what its jobs have taken from it; `alive_seconds`: without a sign of life a job's parent is dead."""

    redis: Any
    name: str
    alive_seconds: int

    def taken(self, job: str) -> str:
        return f"{self.name}:taken:{job}"

    def alive(self, job: str) -> str:
        return f"{self.name}:alive:{job}"

    def take_place(self, job: str, jobs: int) -> bool:
        """Be one of at most so many jobs."""
        keys = f"{self.name}:jobs", self.alive(job)
        return bool(self.redis.eval(TAKE_PLACE, 2, *keys, job, jobs, self.alive_seconds))

    def orphans(self) -> Iterator[str]:
        """Jobs whose parent is dead; each is the caller's from now on."""
        for job in sorted(self.redis.smembers(f"{self.name}:jobs")):
            if self.redis.set(self.alive(job), 1, nx=True, ex=self.alive_seconds):
                yield job

    @contextmanager
    def living(self, job: str) -> Iterator[None]:
        """Within: this process gives the job's signs of life."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(self.alive_seconds / 4):
                try:
                    self.redis.set(self.alive(job), 1, ex=self.alive_seconds)
                except Exception:  # noqa: BLE001 - Redis is away: the next beat tries again
                    pass

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def pull(self, job: str, most: int, seconds: float) -> Iterator[dict[str, str]]:
        """The source of a job: so many ids at most, or what comes within so many seconds."""
        end, count = time.monotonic() + seconds, 0
        while count < most and (left := end - time.monotonic()) > 0:
            # Short waits: a socket has a timeout of its own.
            taken = self.redis.blmove(self.name, self.taken(job), min(left, 1.0), "LEFT", "RIGHT")
            if taken is not None:
                count += 1
                yield {"id": taken}

    def acknowledge(self, job: str, folder: JobFolder | None) -> Counter[str]:
        """Take every id out of the job's list, by its outcome; a job that is not over keeps it for its next parent."""
        found: Counter[str] = Counter()
        taken = self.taken(job)
        if folder is not None:
            if folder.read_report() is None:
                return found
            for outcome in folder.outcomes([ItemOutcome.SUCCEEDED, ItemOutcome.FAILED]):
                if outcome.outcome is ItemOutcome.FAILED:
                    error = f"{outcome.error_type}: {outcome.error_text}"
                    dead = json.dumps({"id": outcome.key, "error": error, "job": job})
                    done = self.redis.eval(MOVE, 2, taken, f"{self.name}:dead", outcome.key, "RPUSH", dead)
                else:
                    done = self.redis.eval(MOVE, 2, taken, "", outcome.key, "", "")
                found[outcome.outcome.value] += done
        while self.redis.lmove(taken, self.name, "RIGHT", "LEFT") is not None:
            found["returned"] += 1
        self.redis.srem(f"{self.name}:jobs", job)
        self.redis.delete(self.alive(job))
        return found


@flow(name="queue-batch")
def queue_batch(
    deployment: str = "video-ingest/default",
    parameters: dict[str, Any] | None = None,
    queue: str = "ids",
    most: int = 1000,
    seconds: float = 5,
    jobs: int = 2,
    batch_size: int = 100,
    max_in_flight: int = 4,
    alive_seconds: int = 30,
) -> dict[str, int]:
    """Take ids from a queue, fan them out, and acknowledge each by its outcome.

    The Redis is the one that `REDIS_URL` names where this runs.

    Args:
        deployment: The batch deployment that works on the ids.
        parameters: Passed to every child run besides its ids.
        queue: Name of the Redis list.
        most: Ids that one job takes at most.
        seconds: That one job waits for ids.
        jobs: Jobs of this queue at once; a run that would be one more takes nothing.
        batch_size: Most ids of a batch.
        max_in_flight: Most child runs of a job at once.
        alive_seconds: Without a sign of life for so long a parent run is dead, and its job is resumed by the next one.
    """
    try:
        import redis
    except ImportError as error:
        raise ImportError("queues need Redis's client: pip install 'redis>=5'") from error
    url = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
    log, found = get_run_logger(), Counter[str]()
    with redis.Redis.from_url(url, decode_responses=True) as connection:
        ids = Queue(connection, queue, alive_seconds)
        for orphan in ids.orphans():
            log.info("Job %s has lost its parent run: going on with it", orphan)
            with ids.living(orphan):
                found += ids.acknowledge(orphan, finished(orphan))
        if not connection.llen(queue):
            log.info("Nothing to do")
            return dict(found)
        job = f"{queue}-{flow_run.id}"
        if not ids.take_place(job, jobs):
            log.info("%d jobs are at work: this run takes nothing", jobs)
            return dict(found)
        with ids.living(job):
            try:
                orchestrate_sync(
                    deployment, lambda: ids.pull(job, most, seconds), key="id", select="id", parameters=parameters,
                    batch_size=batch_size, max_in_flight=max_in_flight, job_id=job, on_failure="return",
                )  # fmt: skip
            finally:
                found += ids.acknowledge(job, existing(job))
    log.info("%s", ", ".join(f"{count} {what}" for what, count in found.items()) or "nothing was taken")
    return dict(found)


def finished(job: str) -> JobFolder | None:
    """The folder of a job that lost its parent, after it was brought to its end; None when it died before it began."""
    try:
        resume_sync(job, on_failure="return")
    except JobNotFoundError:
        return None
    except JobConflictError:
        pass  # it is over, and did not end well: what it left goes back
    return open_job(job)


def existing(job: str) -> JobFolder | None:
    try:
        return open_job(job)
    except JobNotFoundError:
        return None
