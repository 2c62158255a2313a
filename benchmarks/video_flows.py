"""The video ingest with a witness: a count of the calls in progress that only the calls themselves write."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deployments.video_ingest import VIDEOS, ingest
from orchestrator import batch_flow

_COUNTS = struct.Struct("3q")  # in progress now, most at once, all so far


def watched_ingest(video: str, *, source: str, target: str, witness: str) -> dict[str, Any]:
    """Ingest a video, counted with all others of the job and with those of its own process."""
    with counted(Path(witness) / "all"), counted(Path(witness) / f"of-{os.getpid()}"):
        return ingest(video, source=source, target=target)


@contextmanager
def counted(file: Path) -> Iterator[None]:
    _add(file, 1)
    try:
        yield
    finally:
        _add(file, -1)


def counts(file: Path) -> tuple[int, int, int]:
    """In progress now, most at once, all so far."""
    return _COUNTS.unpack(file.read_bytes())  # type: ignore[return-value]


def _add(file: Path, step: int) -> None:
    handle = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # released with the handle
        now, most, total = _COUNTS.unpack(os.pread(handle, _COUNTS.size, 0) or bytes(_COUNTS.size))
        now += step
        os.pwrite(handle, _COUNTS.pack(now, max(most, now), total + max(step, 0)), 0)
    finally:
        os.close(handle)


bench_videos = batch_flow(watched_ingest, name="bench-videos", item_concurrency=VIDEOS)
