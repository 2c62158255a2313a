"""Bulk video ingest: probe a file, decode and count its frames, keep a key frame and the facts.

Three batch flows of one function; which one a job runs is the deployment it names:

    video-ingest/default            a plain call per video: the job folder has its only record
    video-ingest-tasks/default      a task run per video: state, logs, retries, a name in the UI
    video-ingest-processes/default  a plain call in one of as many processes as there are cores
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from typing import Any
from urllib.parse import quote

import fsspec
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from orchestrator import batch_flow

VIDEOS = 16  # in flight in one child run: one ends, the next starts


class UnreadableVideoError(Exception):
    """A file that is there and is no video that can be decoded to its end."""


def ingest(video: str, *, source: str, target: str, suffix: str = ".mp4") -> dict[str, Any]:
    """Ingest videos: count their frames, keep a key frame of each and what it is.

    Args:
        video: Its id: the file `<id><suffix>` below `source`.
        source: Folder of the videos, any fsspec URL.
        target: Folder for key frames (`<id>.jpg`) and facts (`<id>.json`), any fsspec URL.
        suffix: What the names of the files end with.
    """
    files, path = fsspec.core.url_to_fs(f"{source.rstrip('/')}/{video}{suffix}")
    outputs, folder = fsspec.core.url_to_fs(target)
    base = f"{folder.rstrip('/')}/{quote(video, safe='')}"
    try:
        with files.open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            known = facts_of(outputs, f"{base}.json")
            if known.get("sha256") == sha256:
                return known  # ingested before: nothing is decoded or written again
            if not file.tell():
                raise UnreadableVideoError(f"{video}: {path} is empty")
            file.seek(0)
            found, picture = decode(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"{video}: there is no file {path}") from None
    except (ValueError, EOFError) as error:  # PyAV's InvalidDataError is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise UnreadableVideoError(f"{video}: {path} cannot be decoded: {reason}") from error
    facts = {"video": video, "sha256": sha256, **found}
    put(outputs, f"{base}.jpg", picture)
    put(outputs, f"{base}.json", json.dumps(facts).encode())  # last: where it is, the picture is
    return facts


def decode(file: Any) -> tuple[dict[str, Any], bytes]:
    """What the container says and its frames show; the first key frame as a JPEG.

    Raises:
        ValueError: it is no video, or one that ends too early.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("videos need PyAV: pip install 'av>=14'") from error
    with av.open(file) as container:
        stream = next(iter(container.streams.video), None)
        if stream is None:
            raise ValueError("it has no video stream")
        stream.codec_context.thread_count = 1  # the window keeps the cores busy: FFmpeg's own threads only add to them
        frames, picture = 0, b""
        for frame in container.decode(stream):
            frames += 1
            if frame.key_frame and not picture:
                encoder: Any = av.CodecContext.create("mjpeg", "w")
                encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, "yuvj420p"
                encoder.time_base = stream.time_base
                picture = b"".join(map(bytes, encoder.encode(frame.reformat(format="yuvj420p"))))
        if not picture or frames < stream.frames:
            raise ValueError(f"only {frames} of its {stream.frames} frames are there")
        seconds = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else None
        context = stream.codec_context
        return {"frames": frames, "seconds": seconds, "width": context.width, "height": context.height,
                "codec": context.name}, picture  # fmt: skip


def facts_of(files: Any, path: str) -> dict[str, Any]:
    """What was written about a video before; empty without."""
    try:
        return dict(json.loads(files.cat_file(path)))
    except FileNotFoundError:
        return {}


def put(files: Any, path: str, content: bytes) -> None:
    """Write a file whole or not at all."""
    half = f"{path}.{uuid.uuid4().hex}.part"
    files.makedirs(path.rpartition("/")[0], exist_ok=True)
    files.pipe_file(half, content)
    files.mv(half, path)


def worth_retrying(_task: Any, _run: Any, state: Any) -> bool:
    """Storage that does not answer may do so later; a file that is not there or no video will not change."""
    return not isinstance(state.result(raise_on_failure=False), UnreadableVideoError | FileNotFoundError)


video_ingest = batch_flow(
    ingest, name="video-ingest", item_concurrency=VIDEOS, item_retries=2, item_retry_delay_seconds=0.5
)

as_task = task(
    task_run_name="ingest-{video}",
    tags=["video-ingest"],
    retries=2,
    retry_delay_seconds=[1, 10],
    retry_condition_fn=worth_retrying,
    persist_result=False,
    cache_policy=NO_CACHE,
)
video_ingest_tasks = batch_flow(
    as_task(ingest),
    name="video-ingest-tasks",
    item_concurrency=VIDEOS,
    task_runner=ThreadPoolTaskRunner(max_workers=VIDEOS),
)

video_ingest_processes = batch_flow(
    ingest,
    name="video-ingest-processes",
    executor="processes",
    item_concurrency=os.cpu_count() or 1,
    item_timeout_seconds=600,  # a process that hangs is ended; a thread could only be left behind
    item_retries=2,
    item_retry_delay_seconds=0.5,
)
