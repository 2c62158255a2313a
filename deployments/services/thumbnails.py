"""A slow image service, to try image batches against: it takes images, makes thumbnails in its own time, answers polls.

    python deployments/services/thumbnails.py --port 8900 --seconds 2 --most 8

    POST /jobs?name=cat.png        an image as the body -> 202 {"job": "1"}; 429 with Retry-After when it is full
    GET  /jobs/1                   {"state": "working" | "done" | "failed", "error": ..., "statistics": ...}
    GET  /jobs/1/thumbnail         the JPEG
    GET  /stats                    what it has done; `most_in_progress` is the most jobs it ever had at once
    POST /trouble?name=cat*&kind=fail&times=1   trouble to order: fail, stall, error (500), close (the connection)
    DELETE /trouble                as if nothing had been ordered

A request that is sent again with the same `Idempotency-Key` finds the job that the first one began.
"""

from __future__ import annotations

import argparse
import fnmatch
import io
import itertools
import json
import sys
import threading
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image, ImageStat

KINDS = ("fail", "stall", "error", "close")
EDGE = 96  # pixels of a thumbnail's longer side


class FullError(Exception):
    """As many jobs are in progress as this service takes."""


@dataclass
class Job:
    """One image in work."""

    id: str
    name: str
    state: str = "working"
    error: str | None = None
    statistics: dict[str, Any] | None = None
    thumbnail: bytes = b""


@dataclass
class Trouble:
    """What is ordered for the jobs whose name matches."""

    pattern: str
    kind: str
    left: int


@dataclass
class Service:
    """The jobs and what became of them; one lock guards it all.

    Args:
        seconds: That each job takes at least.
        most: Jobs in progress at once; more are refused.
    """

    seconds: float
    most: int
    jobs: dict[str, Job] = field(default_factory=dict)
    by_key: dict[str, Job] = field(default_factory=dict)
    troubles: list[Trouble] = field(default_factory=list)
    numbers: Any = field(default_factory=lambda: itertools.count(1))
    lock: threading.Lock = field(default_factory=threading.Lock)
    in_progress: int = 0
    most_in_progress: int = 0
    refused: int = 0
    first_start: float | None = None
    last_end: float | None = None

    def start(self, name: str, image: bytes, key: str | None, trouble: str | None) -> Job:
        """Begin a job, or find the one begun under that key.

        Raises:
            FullError: too many are in progress.
        """
        with self.lock:
            if key and key in self.by_key:
                return self.by_key[key]
            if self.in_progress >= self.most:
                self.refused += 1
                raise FullError
            job = Job(str(next(self.numbers)), name)
            self.jobs[job.id] = job
            if key:
                self.by_key[key] = job
            self.in_progress += 1
            self.most_in_progress = max(self.most_in_progress, self.in_progress)
            self.first_start = self.first_start or time.monotonic()
        if trouble != "stall":  # a stalled job is never finished
            threading.Thread(target=self._work, args=(job, image, trouble), daemon=True).start()
        return job

    def _work(self, job: Job, image: bytes, trouble: str | None) -> None:
        until = time.monotonic() + self.seconds
        state, error, statistics, thumbnail = "done", None, None, b""
        try:
            if trouble == "fail":
                raise RuntimeError("the model is out of order")
            statistics, thumbnail = measure(image)
        except Exception as e:  # noqa: BLE001 - whatever an image does to Pillow fails its job
            state, error = "failed", f"{type(e).__name__}: {e}"
        time.sleep(max(0.0, until - time.monotonic()))
        with self.lock:
            job.state, job.error, job.statistics, job.thumbnail = state, error, statistics, thumbnail
            self.in_progress -= 1
            self.last_end = time.monotonic()

    def trouble_for(self, name: str) -> str | None:
        """What was ordered for a job of that name; it counts as done once."""
        with self.lock:
            for trouble in self.troubles:
                if trouble.left and fnmatch.fnmatch(name, trouble.pattern):
                    trouble.left -= 1
                    return trouble.kind
        return None

    def stats(self) -> dict[str, Any]:
        """Counts so far; `seconds` lie between the first start and the last end."""
        with self.lock:
            states = [job.state for job in self.jobs.values()]
            names = [job.name for job in self.jobs.values()]
            return {
                "jobs": len(states),
                "done": states.count("done"),
                "failed": states.count("failed"),
                "in_progress": self.in_progress,
                "most_in_progress": self.most_in_progress,
                "refused": self.refused,
                "seconds": round((self.last_end or 0) - (self.first_start or 0), 3) if self.last_end else None,
                "started": {name: names.count(name) for name in sorted(set(names))},
            }


def measure(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Statistics of an image, and its thumbnail as JPEG.

    Raises:
        PIL.UnidentifiedImageError, OSError: it is no image, or is cut off.
    """
    with Image.open(io.BytesIO(content)) as opened:
        image = opened.convert("RGB")
        kind = opened.format
    mean = ImageStat.Stat(image).mean
    statistics = {
        "format": kind,
        "width": image.width,
        "height": image.height,
        "mean_rgb": [round(channel, 1) for channel in mean],
    }
    image.thumbnail((EDGE, EDGE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return statistics, out.getvalue()


class Handler(BaseHTTPRequestHandler):
    """The routes."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        url, query = self._asked()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        service = self.server.service
        if url == "/trouble":
            if query.get("kind") not in KINDS:
                return self._answer(HTTPStatus.BAD_REQUEST, {"error": f"kind must be one of {', '.join(KINDS)}"})
            ordered = Trouble(query.get("name", "*"), query["kind"], int(query.get("times", 1_000_000)))
            with service.lock:
                service.troubles.append(ordered)
            return self._answer(HTTPStatus.OK, {"ordered": ordered.kind})
        if url != "/jobs":
            return self._answer(HTTPStatus.NOT_FOUND, {"error": "no such thing"})
        name = query.get("name", "")
        trouble = service.trouble_for(name)
        if trouble == "error":
            return self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "out of order"})
        if trouble == "close":
            self.close_connection = True
            return None
        try:
            job = service.start(name, body, self.headers.get("Idempotency-Key"), trouble)
        except FullError:
            return self._answer(HTTPStatus.TOO_MANY_REQUESTS, {"error": "full"}, {"Retry-After": "1"})
        return self._answer(HTTPStatus.ACCEPTED, {"job": job.id})

    def do_GET(self) -> None:
        url, _ = self._asked()
        service = self.server.service
        if url == "/stats":
            return self._answer(HTTPStatus.OK, service.stats())
        parts = url.strip("/").split("/")
        job = service.jobs.get(parts[1]) if len(parts) > 1 and parts[0] == "jobs" else None
        if job is None:
            return self._answer(HTTPStatus.NOT_FOUND, {"error": "no such job"})
        if parts[2:] == ["thumbnail"]:
            if job.state != "done":
                return self._answer(HTTPStatus.CONFLICT, {"error": f"the job is {job.state}"})
            return self._send(HTTPStatus.OK, "image/jpeg", job.thumbnail, {})
        with service.lock:
            facts = {"state": job.state, "error": job.error, "statistics": job.statistics}
        return self._answer(HTTPStatus.OK, facts)

    def do_DELETE(self) -> None:
        with self.server.service.lock:
            self.server.service.troubles.clear()
        self._answer(HTTPStatus.OK, {"ordered": None})

    def _asked(self) -> tuple[str, dict[str, str]]:
        url = urlsplit(self.path)
        return url.path, {name: values[-1] for name, values in parse_qs(url.query).items()}

    def _answer(self, status: HTTPStatus, data: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._send(status, "application/json", json.dumps(data).encode(), headers or {})

    def _send(self, status: HTTPStatus, kind: str, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet: hundreds of polls a second."""


class Server(ThreadingHTTPServer):
    """A thread per connection."""

    daemon_threads = True
    request_queue_size = 1024  # hundreds of clients connect at once

    def __init__(self, port: int, service: Service) -> None:
        self.service = service
        super().__init__(("127.0.0.1", port), Handler)

    def handle_error(self, *_: Any) -> None:
        """Clients that went away are none of its business."""


def main() -> None:
    """Serve until it is ended."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1; default: a free one")
    parser.add_argument("--seconds", type=float, default=0.5, help="that a job takes at least")
    parser.add_argument("--most", type=int, default=1000, help="jobs in progress at once; more get 429")
    options = parser.parse_args()
    server = Server(options.port, Service(options.seconds, options.most))
    sys.stdout.write(f"serving on http://127.0.0.1:{server.server_port}\n")
    sys.stdout.flush()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
