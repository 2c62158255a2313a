"""Storage that stops answering: a connection that nobody cuts, and no byte comes through."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from orchestrator.batchrun import run as running
from orchestrator.batchrun.fence import Fence
from orchestrator.batchrun.gate import Gate
from orchestrator.batchrun.run import run_batch
from orchestrator.core.model import EndReason
from orchestrator.store import JobFolder, objects
from tests.chaos.proxy import Mode, Proxy
from tests.s3server import s3_server
from tests.support import eventually
from tests.unit.batchrun.jobs import Door, StagedJob, chosen


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Before an S3 server; this process reaches the server through it."""
    with s3_server() as server:
        between = Proxy(int(urlsplit(server.endpoint).port or 0))
        between.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{between.port}")
        objects.forget_file_systems()
        yield between
        between.stop()


def test_a_run_that_gets_no_answer_starts_nothing_more_and_ends_although_it_cannot_say_so(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_LAST_WORD_SECONDS", 1.0)
    job = StagedJob("s3://jobs/deaf", [*range(600)], lease_seconds=3.0, fence_seconds=0.2)
    job.beat()
    door, begun, ended = Door(), threading.Event(), []
    started: list[float] = []

    def process(item: int) -> None:
        started.append(time.monotonic())
        begun.set()
        time.sleep(0.1)

    thread = threading.Thread(
        target=lambda: ended.append(run_batch(job.reference(), chosen(process), door)), daemon=True
    )
    thread.start()
    assert begun.wait(30)
    proxy.set(Mode.BLACKHOLE)
    deaf = time.monotonic()
    eventually(lambda: ended, 60, "the end of the run")
    assert max(started) - deaf < 15, "items went on being started"
    assert ended[0].type in ("CANCELLED", "FAILED")
    assert door.exits, "its process ends too, should Prefect not answer either"
    proxy.set(Mode.PASS)


def test_a_reading_that_hangs_does_not_keep_the_clock_from_running(proxy: Proxy) -> None:
    job = StagedJob("s3://jobs/hanging", [1])
    job.beat()
    gate = Gate()
    fence = Fence(JobFolder("s3://jobs/hanging"), 0, 0, gate, interval=0.2, lease_seconds=2.0)
    proxy.set(Mode.BLACKHOLE)
    began = time.monotonic()
    fence.start()
    eventually(lambda: gate.reason, 30, "the gate is closed")
    fence.stop()
    assert gate.reason is EndReason.LEASE_LOST
    assert 2.0 <= time.monotonic() - began < 15
    proxy.set(Mode.PASS)
