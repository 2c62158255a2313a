"""The embedded stack on PostgreSQL and Redis: what it refuses before anything starts, and who learns the addresses."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

from orchestrator.errors import ConfigurationError
from orchestrator.stack import Stack
from orchestrator.stack.databases import Backing
from tests.e2e.test_stack import FLOW, PREFECT_YAML, run_hello, state_of
from tests.postgres import Postgres, postgres_server
from tests.redis_server import redis_server
from tests.redis_server import required as redis_required
from tests.support import eventually

PASSWORD, REDIS_PASSWORD = "p@ss/wörd", "r3dis-s3cret"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with postgres_server(password=PASSWORD) as server:
        yield server


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    redis_required()
    with redis_server(tmp_path_factory.mktemp("redis"), password=REDIS_PASSWORD) as url:
        yield url


def sql(postgres: Postgres, database: str, text: str) -> None:
    where = ["--host", "127.0.0.1", "--port", str(postgres.port), "--username", "postgres", "--dbname", database]
    subprocess.run(
        [postgres.programs / "psql", "--quiet", *where, "--command", text],
        check=True, timeout=60, env=postgres.environment,
    )  # fmt: skip


def refusal(database: str | None, redis: str | None = None, home: Path | None = None) -> str:
    """Why a stack on these does not start; nothing was begun for it."""
    stack = Stack(home, database=database, redis=redis)
    with pytest.raises(ConfigurationError) as caught:
        stack.start()
    assert stack.processes() == []
    text = str(caught.value)
    assert PASSWORD not in text
    assert REDIS_PASSWORD not in text
    return text


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.real
@pytest.mark.slow
def test_a_stack_on_postgres_and_redis_runs_flows_and_tells_its_server_alone(
    postgres: Postgres, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres.create("whole")
    address, home = postgres.address("whole"), tmp_path / "home"
    (tmp_path / "flows_of_test.py").write_text(FLOW)
    (tmp_path / "prefect.yaml").write_text(PREFECT_YAML)
    monkeypatch.setenv("ORCHESTRATOR_STACK_DATABASE", address)
    monkeypatch.setenv("ORCHESTRATOR_STACK_REDIS", redis_url)
    with Stack(home, pool="test-pool", database=address, redis=redis_url) as stack:
        assert str(stack.backing) == f"PostgreSQL at 127.0.0.1:{postgres.port}/whole, Redis at {place(redis_url)}"
        stack.deploy(tmp_path / "prefect.yaml")
        first, long = run_hello(stack, 0), run_hello(stack, 120)
        eventually(lambda: state_of(stack, first) == "COMPLETED", 120, "the run completed")
        eventually(lambda: state_of(stack, long) == "RUNNING", 120, "the other one runs")

        # The server's events go through Redis, and come out of it again.
        wanted = {"filter": {"event": {"name": ["prefect.flow-run.Completed"]}}}
        eventually(lambda: stack.request("POST", "/events/filter", wanted)["events"], 60, "the event of its end")
        with redis.Redis.from_url(redis_url) as client:
            assert client.xlen("events") > 0
        assert not list(home.glob("*.db*")), "there is a SQLite database besides"

        # Nobody but the server knows the addresses; not even its API tells.
        knowing = {stack_process for stack_process in stack.processes() if knows(stack_process)}
        assert knowing == {stack.server_pid}
        assert len(stack.processes()) >= 3, "server, worker and a run"
        assert not tells(str(stack.request("GET", "/admin/settings")))
        written = [path for path in home.rglob("*") if path.is_file()]
        assert [path.name for path in written if tells(path.read_text(errors="replace"))] == []

        assert "another stack runs on the database" in refusal(address)
    # It is there again for the next one, and so are the marks of whose it is.
    with Stack(home, pool="test-pool", workers=0, database=address, redis=redis_url) as stack:
        assert state_of(stack, first) == "COMPLETED"


def place(url: str) -> str:
    return url.rpartition("@")[2]


def tells(text: str) -> bool:
    return any(word in text for word in (PASSWORD, REDIS_PASSWORD, "p%40ss"))


def knows(pid: int) -> bool:
    """Whether that process has a password in its environment or on its command line."""
    try:
        process = psutil.Process(pid)
        assert not tells(" ".join(process.cmdline()))
        return any(tells(value) for value in process.environ().values())
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda a: a.replace("p%40ss", "wrong"), "does not take this user and password"),
        (lambda a: a + "_nowhere", "there is no database 'empty_nowhere' .* create it"),
        (lambda a: re.sub(r":\d+/", f":{closed_port()}/", a), "cannot be reached"),
    ],
    ids=["wrong password", "no such database", "nobody there"],
)
def test_a_database_that_cannot_be_reached_is_said(
    postgres: Postgres, changed: Callable[[str], str], said: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    assert re.search(said, refusal(changed(postgres.address("empty")), home=home))
    assert not home.exists()


def test_a_database_of_something_else_is_left_alone(postgres: Postgres) -> None:
    postgres.create("shop")
    sql(postgres, "shop", "CREATE TABLE orders (id int); CREATE TABLE alembic_version (version_num text)")
    assert "tables that are not Prefect's (alembic_version, orders)" in refusal(postgres.address("shop"))


def test_a_database_of_a_newer_prefect_is_left_alone(postgres: Postgres) -> None:
    postgres.create("newer")
    sql(
        postgres, "newer",
        "CREATE TABLE flow_run (id int); CREATE TABLE alembic_version (version_num text);"
        "INSERT INTO alembic_version VALUES ('ffffffffffff')",
    )  # fmt: skip
    assert "of a newer Prefect (schema ffffffffffff)" in refusal(postgres.address("newer"))


def test_a_user_who_may_not_create_tables_is_told_to_own_the_database(postgres: Postgres) -> None:
    postgres.create("foreign")
    sql(postgres, "foreign", "CREATE ROLE guest LOGIN PASSWORD 'guest'; REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    assert "may not create tables" in refusal(f"postgresql://guest:guest@127.0.0.1:{postgres.port}/foreign")


def test_a_redis_of_something_else_or_of_another_prefect_is_left_alone(postgres: Postgres, redis_url: str) -> None:
    for name in ("one", "two"):
        postgres.create(name)
    used, shared = redis_url.removesuffix("0") + "7", redis_url.removesuffix("0") + "8"
    with redis.Redis.from_url(used) as client:
        client.set("basket", 1)
    assert "holds keys of something else" in refusal(postgres.address("one"), used)

    Backing.read(postgres.address("one"), shared).look()
    Backing.read(postgres.address("one"), shared).look()
    assert "another Prefect's database" in refusal(postgres.address("two"), shared)


def test_a_redis_that_cannot_be_reached_is_said(postgres: Postgres, redis_url: str) -> None:
    postgres.create("lonely")
    address = postgres.address("lonely")
    assert "cannot be used" in refusal(address, re.sub(r":\d+/", f":{closed_port()}/", redis_url))
    assert "cannot be used" in refusal(address, redis_url.replace(REDIS_PASSWORD, "another"))


def test_the_command_line_refuses_in_one_line_that_shows_no_password(postgres: Postgres, tmp_path: Path) -> None:
    address = postgres.address("not_there")
    for given in ({"arguments": ["--database", address]}, {"variable": address}):
        environment = os.environ | ({"ORCHESTRATOR_STACK_DATABASE": given["variable"]} if "variable" in given else {})
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", "up", *given.get("arguments", [])],
            capture_output=True, text=True, check=False, timeout=120, env=environment, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert "database: there is no database 'not_there'" in done.stderr.splitlines()[-1]
        assert not tells(done.stdout + done.stderr)
