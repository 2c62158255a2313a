"""Addresses of databases: which are taken, what becomes of them, and that no text repeats a password."""

from __future__ import annotations

import pytest

from orchestrator.errors import ConfigurationError
from orchestrator.stack import Stack
from orchestrator.stack.databases import Backing, _knows_revision

POSTGRES = "postgresql://me:s3cr3t@db:5433/prefect"
URL = "PREFECT_SERVER_DATABASE_CONNECTION_URL"


@pytest.mark.parametrize(
    ("address", "url", "place"),
    [
        (POSTGRES, "postgresql+asyncpg://me:s3cr3t@db:5433/prefect", "db:5433/prefect"),
        ("postgres://db/prefect", "postgresql+asyncpg://db/prefect", "db:5432/prefect"),
        ("postgresql+asyncpg://me@db/p", "postgresql+asyncpg://me@db/p", "db:5432/p"),
        ("postgresql://db/p?sslmode=require", "postgresql+asyncpg://db/p?ssl=require", "db:5432/p"),
        ("postgresql:///p?host=/run/pg", "postgresql+asyncpg:///p?host=%2Frun%2Fpg", "/run/pg:5432/p"),
    ],
)  # fmt: skip
def test_an_address_as_people_write_it_becomes_the_servers(address: str, url: str, place: str) -> None:
    backing = Backing.read(address, None)
    assert backing.settings[URL] == url
    assert str(backing) == f"PostgreSQL at {place}"


@pytest.mark.parametrize(
    ("database", "redis", "said"),
    [
        ("sqlite:///me:s3cr3t.db", None, "database: SQLite is what the stack uses by itself"),
        ("mysql://me:s3cr3t@db/p", None, "database: .* not on 'mysql'"),
        ("postgresql+psycopg2://me:s3cr3t@db/p", None, "database: .* through asyncpg, not 'psycopg2'"),
        ("postgresql://me:s3cr3t@db", None, "database: names no database"),
        ("me:s3cr3t@db", None, "database: is no address"),
        ("postgresql://me:s3cr3t@db:port/p", None, "database: is no address"),
        (None, "redis://cache", "redis: .* name a --database too"),
        (POSTGRES, "http://:s3cr3t@cache", "redis: is no address"),
        (POSTGRES, "redis://:s3cr3t@cache/first", "redis: is no address"),
        (POSTGRES, "redis://:s3cr3t@cache:port", "redis: is no address"),
    ],
)
def test_what_is_no_address_is_refused_without_being_repeated(
    database: str | None, redis: str | None, said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        Stack(database=database, redis=redis)
    assert "s3cr3t" not in str(caught.value)


def test_a_password_is_neither_printed_nor_represented() -> None:
    backing = Backing.read(POSTGRES, "rediss://me:other@cache/3")
    assert not any(word in repr(backing) + str(backing) for word in ("s3cr3t", "other"))
    assert set(backing.words) == {"s3cr3t", "other"}


def test_an_address_that_prefect_shows_holds_no_password() -> None:
    """Prefect's API shows `server.docket.url` as it is."""
    shown = "PREFECT_SERVER_DOCKET_URL"
    assert Backing.read(POSTGRES, "redis://cache/3").settings[shown] == "redis://cache/3"
    assert shown not in Backing.read(POSTGRES, "redis://:other@cache/3").settings


def test_a_redis_without_prefects_part_for_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.stack.databases.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"install the extra 'stack' .*pip install '\.\[stack\]'"):
        Backing.read(POSTGRES, "redis://cache")


def test_the_installed_prefect_knows_its_own_history() -> None:
    assert _knows_revision("41e5ed9e1034")
    assert not _knows_revision("ffffffffffff")
