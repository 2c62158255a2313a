"""An S3 server of the tests: moto's, as a process of its own on a free port of the loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.support import eventually

BUCKET = "jobs"


@dataclass(frozen=True)
class S3Server:
    """Its endpoint; `environment` is what a process needs to use it."""

    endpoint: str

    def block_settings(self, key: str = "testing", secret: str = "testing") -> dict[str, object]:
        """The same for a block: what fsspec's file system is given, whatever the environment says."""
        return {
            "key": key,
            "secret": secret,
            "endpoint_url": self.endpoint,
            "client_kwargs": {"region_name": "us-east-1"},
        }

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A running server with an empty bucket `jobs`; the environment of this process points to it meanwhile."""
    from orchestrator.store import objects

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = S3Server(f"http://127.0.0.1:{port}")
    before = {name: os.environ.get(name) for name in server.environment}
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        os.environ.update(server.environment)
        objects.forget_file_systems()
        eventually(lambda: _creates_bucket(server.endpoint), 60, "the S3 server answers")
        yield server
    finally:
        objects.forget_file_systems()
        process.terminate()
        process.wait(10)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _creates_bucket(endpoint: str) -> bool:
    request = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
    # moto wants to know whom it talks to, and believes anybody.
    request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=testing/20250101/us-east-1/s3/aws4_request")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server
