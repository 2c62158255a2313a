"""A PostgreSQL of the tests: a cluster of its own in a temporary folder, on a free port of the loopback."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import pytest

from tests.support import eventually

REQUIRED = "ORCHESTRATOR_REQUIRE_POSTGRES"
"""Set it to 1 where a missing PostgreSQL must fail the tests instead of skipping them."""

USER = "postgres"


@dataclass(frozen=True)
class Postgres:
    """A running server, that trusts whoever comes from this machine unless it has a password."""

    port: int
    programs: Path
    password: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Of PostgreSQL's own programs."""
        return {**os.environ, **({"PGPASSWORD": self.password} if self.password else {})}

    def address(self, database: str) -> str:
        """As people write it."""
        user = f"{USER}:{quote(self.password, safe='')}" if self.password else USER
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def url(self, database: str = "postgres") -> str:
        """For SQLAlchemy."""
        return f"postgresql+psycopg://{USER}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """Create a database; its URL."""
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--username", USER]
        subprocess.run(
            [self.programs / "createdb", *where, database], check=True, timeout=60, env=self.environment
        )  # fmt: skip
        return self.url(database)


@contextmanager
def postgres_server(*, password: str | None = None, durable: bool = False) -> Iterator[Postgres]:
    """A running server; skips the test, saying why, where there is none and none is required.

    Args:
        password: Of the only user; None: it is not asked for.
        durable: A commit waits for the disk, as it does by default where data matter.
    """
    programs = _programs()
    if programs is None:
        missing("no initdb and postgres in PATH or /usr/lib/postgresql")
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-postgres-"))
    try:
        options = {"cwd": folder, **_as_owner(folder)}
        data, port = folder / "data", _free_port()
        auth = ["--auth", "trust"]
        if password:
            (folder / "password").write_text(password)
            (folder / "password").chmod(0o644)  # for the user who runs the server
            auth = ["--auth", "scram-sha-256", "--pwfile", folder / "password"]
        made = subprocess.run(
            [programs / "initdb", "--pgdata", data, "--username", USER, *auth, "--no-sync",
             "--encoding", "UTF8", "--locale", "C"],
            capture_output=True, text=True, timeout=120, check=False, **options,
        )  # fmt: skip
        assert made.returncode == 0, made.stdout + made.stderr
        settings = {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": ""}
        careless = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "shared_buffers": "16MB"}
        settings |= {} if durable else careless
        chosen = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, *chosen], stdout=log, stderr=subprocess.STDOUT, **options
            )
        try:
            eventually(lambda: _answers(programs, port, server, folder / "log"), 60, "PostgreSQL answers")
            yield Postgres(port, programs, password)
        finally:
            server.send_signal(signal.SIGINT)  # SIGTERM would wait for clients to leave
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def missing(reason: str) -> NoReturn:
    """Skip; or fail where PostgreSQL is required."""
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{REQUIRED}=1, and {reason}")
    pytest.skip(f"needs PostgreSQL: {reason}")


@cache
def _programs() -> Path | None:
    on_path = shutil.which("initdb")
    homes = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name), reverse=True)
    for home in ([Path(on_path).parent] if on_path else []) + homes:
        if all((home / name).exists() for name in ("initdb", "postgres", "pg_isready", "createdb")):
            return home
    return None


def _as_owner(folder: Path) -> dict[str, Any]:
    """Options of Popen for who runs the server, because PostgreSQL refuses root; the folder becomes theirs."""
    if os.getuid() != 0:
        return {}
    try:
        user = pwd.getpwnam(USER)
    except KeyError:
        missing(f"root cannot run it, and there is no user {USER!r}")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _answers(programs: Path, port: int, server: subprocess.Popen[bytes], log: Path) -> bool:
    assert server.poll() is None, log.read_text(errors="replace")
    ready = [programs / "pg_isready", "--quiet", "--host", "127.0.0.1", "--port", str(port)]
    return subprocess.run(ready, check=False, timeout=30).returncode == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
