"""A Redis of the tests: Debian's `redis-server` on a free port of the loopback, in a folder of its own, in memory."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from tests.support import eventually

PROGRAM = "redis-server"


def why_not() -> str | None:
    """Why there can be no server here; None when there can."""
    if shutil.which(PROGRAM) is not None:
        return None
    return f"there is no {PROGRAM} here; `apt-get install redis-server` brings one"


def required() -> None:
    """Skip the test where there can be no server; fail it where `ORCHESTRATOR_REQUIRE_REDIS=1` wants one."""
    reason = why_not()
    if reason is None:
        return
    if os.environ.get("ORCHESTRATOR_REQUIRE_REDIS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def redis_server(folder: Path, *, password: str | None = None) -> Iterator[str]:
    """A running, empty server of 64 numbered databases; the URL of the first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    options = {"--port": str(port), "--bind": "127.0.0.1", "--dir": str(folder), "--save": "", "--appendonly": "no",
               "--daemonize": "no", "--logfile": str(folder / "redis.log"), "--databases": "64"}  # fmt: skip
    if password:
        options["--requirepass"] = password
    process = subprocess.Popen([PROGRAM, *(word for option in options.items() for word in option)])
    try:
        url = f"redis://{f':{password}@' if password else ''}127.0.0.1:{port}/0"
        with redis.Redis.from_url(url) as connection:
            eventually(lambda: process.poll() is not None or _answers(connection), 30, "Redis answers")
        assert process.poll() is None, (folder / "redis.log").read_text()
        yield url
    finally:
        process.terminate()
        process.wait(10)


def _answers(connection: redis.Redis) -> bool:
    try:
        return bool(connection.ping())
    except redis.ConnectionError:
        return False
