"""Thumbnails by a slow external service: retrieve an image, start a job, poll until it is done, deliver the result.

Each image is one group of four tasks; hundreds of them are in flight in one child run, and all child runs together
never have more at the service than the Prefect limit `thumbnails` allows:

    prefect gcl create thumbnails --limit 4
    prefect gcl create thumbnails-starts --limit 20 --slot-decay-per-second 20
"""

from __future__ import annotations

import functools
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import httpx
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run
from prefect.task_runners import ThreadPoolTaskRunner

from orchestrator import batch_flow

IMAGES = 200  # in flight in one child run, as far as the limit lets them
STEPS = 4  # tasks per image: each waits in a thread of its own until the one before it is done
FIRST_POLL, SLOWEST_POLL = 0.1, 5.0  # seconds


class ProcessingFailedError(Exception):
    """The service could not process an image."""


class ProcessingTimeoutError(Exception):
    """The service did not finish an image in time."""


@functools.cache
def client() -> httpx.Client:
    """One for all threads of this process, so that connections are used again."""
    limits = httpx.Limits(max_connections=IMAGES, max_keepalive_connections=IMAGES)
    return httpx.Client(timeout=httpx.Timeout(10, pool=None), limits=limits, trust_env=False)


@contextmanager
def naming(image: str) -> Iterator[None]:
    """Errors of the connection say which image they are about."""
    try:
        yield
    except httpx.HTTPError as error:
        error.args = (f"{image}: {error}",)
        raise


def worth_retrying(_task: Any, _run: Any, state: Any) -> bool:
    """A connection that failed, a service that is out of order: not a missing image, not a refusal."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500
    return isinstance(error, httpx.TransportError)


RETRIES: dict[str, Any] = {"retries": 2, "retry_delay_seconds": [0.5, 2], "retry_condition_fn": worth_retrying}


@task(task_run_name="retrieve {image}", cache_policy=NO_CACHE, **RETRIES)
def retrieve(image: str, source: str) -> bytes:
    """The image's bytes from any fsspec URL."""
    files, folder = fsspec.core.url_to_fs(source)
    return bytes(files.cat_file(f"{folder.rstrip('/')}/{image}"))


@task(task_run_name="start {image}", cache_policy=NO_CACHE, **RETRIES)
def start_processing(image: str, content: bytes, service: str, deadline: float) -> str:
    """Hand the image to the service; the id of its job. A retry finds the job that the first try began."""
    headers = {"Idempotency-Key": str(task_run.id)}
    while True:
        with naming(image):
            answer = client().post(f"{service}/jobs", params={"name": image}, content=content, headers=headers)
            if answer.status_code != httpx.codes.TOO_MANY_REQUESTS:
                return str(answer.raise_for_status().json()["job"])
        pause(image, "was not accepted", float(answer.headers.get("Retry-After", 1)), deadline)


@task(task_run_name="poll {image}", cache_policy=NO_CACHE, **RETRIES)
def poll(image: str, job: str, service: str, deadline: float) -> dict[str, Any]:
    """The job's statistics once it is done."""
    began = time.monotonic()
    while True:
        with naming(image):
            facts = client().get(f"{service}/jobs/{job}").raise_for_status().json()
        if facts["state"] == "done":
            return dict(facts["statistics"])
        if facts["state"] == "failed":
            raise ProcessingFailedError(f"{image}: job {job} failed: {facts['error']}")
        age = time.monotonic() - began  # a tenth of it is lost at most
        pause(image, f"job {job} was not done", min(SLOWEST_POLL, max(FIRST_POLL, age / 10)), deadline)


@task(task_run_name="deliver {image}", cache_policy=NO_CACHE, **RETRIES)
def deliver(image: str, job: str, statistics: dict[str, Any], service: str, target: str) -> dict[str, Any]:
    """Put the thumbnail and the statistics where they belong; what is there already is left as it is."""
    with naming(image):
        thumbnail = client().get(f"{service}/jobs/{job}/thumbnail").raise_for_status().content
    files, folder = fsspec.core.url_to_fs(target)
    text = json.dumps(statistics, sort_keys=True).encode()
    written = [put(files, f"{folder.rstrip('/')}/{image}{end}", data)
               for end, data in ((".jpg", thumbnail), (".json", text))]  # fmt: skip
    return {"image": image, "delivered": any(written), **statistics}


def put(files: Any, path: str, content: bytes) -> bool:
    """Write a file whole or not at all; False when it is there already with this content."""
    if files.exists(path) and files.cat_file(path) == content:
        return False
    half = f"{path}.{uuid.uuid4().hex}.part"
    files.makedirs(path.rpartition("/")[0], exist_ok=True)
    files.pipe_file(half, content)
    files.mv(half, path)
    return True


def pause(image: str, what: str, seconds: float, deadline: float) -> None:
    """Wait, but not beyond the image's deadline.

    Raises:
        ProcessingTimeoutError: it has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise ProcessingTimeoutError(f"{image}: {what} in time")
    time.sleep(min(seconds, left))


def process(
    image: str,
    *,
    source: str,
    target: str,
    service: str = "http://127.0.0.1:8900",
    deadline_seconds: float = 120,
) -> Any:
    """Have thumbnails of images made by a slow service.

    Args:
        image: Its path below `source`.
        source: Folder of the images, any fsspec URL.
        target: Folder for thumbnails (`.jpg`) and statistics (`.json`), any fsspec URL.
        service: Where the service is.
        deadline_seconds: That one image may take from start to result.
    """
    deadline = time.monotonic() + deadline_seconds
    content: Any = retrieve.submit(image, source)
    job: Any = start_processing.submit(image, content, service, deadline)
    statistics: Any = poll.submit(image, job, service, deadline)
    return deliver.submit(image, job, statistics, service, target)


image_batch = batch_flow(
    process,
    name="image-batch",
    item_concurrency=IMAGES,
    task_runner=ThreadPoolTaskRunner(max_workers=IMAGES * STEPS),
    concurrency_limits=["thumbnails"],
    rate_limits=["thumbnails-starts"],
)


@flow(name="image", flow_run_name="{image}", retries=1)
def image_run(
    image: str, *, source: str, target: str, service: str = "http://127.0.0.1:8900", deadline_seconds: float = 120
) -> dict[str, Any]:
    """The variation: each image a flow run with a page and retries of its own; its steps are plain calls."""
    deadline = time.monotonic() + deadline_seconds
    job = start_processing(image, retrieve(image, source), service, deadline)
    return deliver(image, job, poll(image, job, service, deadline), service, target)


image_runs = batch_flow(
    image_run,
    name="image-runs",
    item_concurrency=20,
    concurrency_limits=["thumbnails"],
    rate_limits=["thumbnails-starts"],
)
