"""PostgreSQL and Redis beneath the stack's server: read from an address, looked at before anything starts.

The addresses hold passwords. They reach the server's process alone, by its environment; workers, child runs, logs of
ours, `stack.json` and error texts know the place without its user info.

Both may be used by one Prefect only. A database is taken when it is empty or a Prefect's; a Redis when it is empty or
marked as belonging to that very database, because all servers use the same names in it: two that share a Redis without
sharing a database would read each other's events.
Source: prefect_redis messaging.py, ordering.py (key prefixes), 0.3.0.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote, quote_plus, urlsplit, urlunsplit

from orchestrator.errors import ConfigurationError, install_extra

T = TypeVar("T")

OLDEST_POSTGRES, OLDEST_REDIS = (14, 0), (6, 2)
"""Source: Prefect's documentation, "Database requirements" (PostgreSQL 14.9); prefect_redis uses XAUTOCLAIM (6.2)."""
SECONDS = 10.0
"""For each answer of a database before the stack's start."""

_NAME = "orchestrator-stack"
_MARK = "orchestrator:stack"
_LEAVING_SECONDS = 5.0  # connections of a server that was just ended may be seen for so long


@dataclass(frozen=True)
class Database:
    """A PostgreSQL database.

    Args:
        url: For the server: asyncpg's form, with user info.
        place: `host:port/name`, which may be shown.
        options: What asyncpg is called with.
    """

    url: str = field(repr=False)
    place: str
    options: dict[str, Any] = field(repr=False)

    @classmethod
    def read(cls, address: str) -> Database:
        """Of an address as people write it: `postgresql://user:password@host:port/name`.

        Raises:
            ConfigurationError: it is none; the text does not repeat it.
        """
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(address)
        except (ArgumentError, ValueError):
            _refuse("is no address like postgresql://user:password@host/name")
        kind, _, driver = url.drivername.partition("+")
        if kind == "sqlite":
            _refuse("SQLite is what the stack uses by itself, in its home folder: leave --database out")
        if kind not in ("postgresql", "postgres"):
            _refuse(f"Prefect's server runs on PostgreSQL and SQLite, not on {kind!r}")
        if driver not in ("", "asyncpg"):
            _refuse(f"Prefect speaks to PostgreSQL through asyncpg, not {driver!r}: write postgresql://...")
        if not url.database:
            _refuse("names no database: postgresql://user:password@host/NAME")
        query = {name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()}
        if "sslmode" in query:  # libpq's word; asyncpg's is `ssl`, with the same values
            query.setdefault("ssl", query.pop("sslmode"))
        host = query.get("host", url.host or "localhost")
        port = url.port or int(query.get("port", 5432))
        options = {"host": host, "port": port, "user": url.username, "password": url.password,
                   "database": url.database, "ssl": query.get("ssl")}  # fmt: skip
        whole = url.set(drivername="postgresql+asyncpg", query=query).render_as_string(hide_password=False)
        return cls(whole, f"{host}:{port}/{url.database}", {k: v for k, v in options.items() if v is not None})

    @property
    def settings(self) -> dict[str, str]:
        return {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": self.url,
            "PREFECT_SERVER_DATABASE_DRIVER": "postgresql+asyncpg",  # what its API tells clients; it masks the address
            "PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_APPLICATION_NAME": _NAME,
        }

    @property
    def words(self) -> set[str]:
        """What may not be shown."""
        return _forms(self.options.get("password"))

    def look(self) -> str:
        """Ask it; what it is, so that two names of one database are one.

        Raises:
            ConfigurationError: it cannot be reached, is too old, belongs to something else or is in use.
        """
        return _apart(self._look)

    async def _look(self) -> str:
        import asyncpg  # type: ignore[import-untyped]  # comes with Prefect, without types

        try:
            connection = await asyncpg.connect(**self.options, timeout=SECONDS, command_timeout=SECONDS)
        except asyncpg.InvalidCatalogNameError:
            name = self.options["database"]
            _refuse(f"there is no database {name!r} at {self.place}: create it (`createdb {name}`)")
        except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidPasswordError):
            _refuse(f"PostgreSQL at {self.place} does not take this user and password")
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as e:
            _refuse(f"PostgreSQL at {self.place} cannot be reached: {self._said(e)}")
        try:
            return await self._examine(connection)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as e:
            _refuse(f"PostgreSQL at {self.place} refused a question: {self._said(e)}")
        finally:
            await connection.close(timeout=SECONDS)

    async def _examine(self, connection: Any) -> str:
        version = connection.get_server_version()
        if (version.major, version.minor) < OLDEST_POSTGRES:
            _refuse(
                f"PostgreSQL at {self.place} is version {version.major}; Prefect needs {OLDEST_POSTGRES[0]} or newer"
            )
        tables = {row[0] for row in await connection.fetch(_TABLES)}
        if "alembic_version" in tables and "flow_run" in tables:
            revision = await connection.fetchval("SELECT version_num FROM alembic_version")
            if revision is not None and not _knows_revision(revision):
                _refuse(f"the database {self.place} is of a newer Prefect (schema {revision}) than the one installed")
        elif tables:
            some = ", ".join(sorted(tables)[:3])
            _refuse(f"the database {self.place} holds tables that are not Prefect's ({some}): name an empty one")
        elif not await connection.fetchval(_MAY_CREATE):
            _refuse(f"this user may not create tables in {self.place}: make it the owner of the database")
        elif not await connection.fetchval(_HAS_TRIGRAMS):
            _refuse(f"PostgreSQL at {self.place} lacks the extension pg_trgm (in the package postgresql-contrib)")
        end = time.monotonic() + _LEAVING_SECONDS
        while await connection.fetchval(_IN_USE, _NAME):
            if time.monotonic() > end:
                _refuse(f"another stack runs on the database {self.place}: stop it, or name another database")
            await asyncio.sleep(0.2)
        return f"{await self._cluster(connection)}/{self.options['database']}"

    async def _cluster(self, connection: Any) -> str:
        import asyncpg

        try:
            return str(await connection.fetchval("SELECT system_identifier FROM pg_control_system()"))
        except asyncpg.PostgresError:  # not everybody's to ask, at some providers
            return f"{self.options['host']}:{self.options['port']}"

    def _said(self, error: BaseException) -> str:
        return _without(" ".join(str(error).split()) or type(error).__name__, self.words)


_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
_MAY_CREATE = "SELECT has_schema_privilege(current_schema(), 'CREATE')"
_HAS_TRIGRAMS = "SELECT count(*) > 0 FROM pg_available_extensions WHERE name = 'pg_trgm'"
_IN_USE = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1"


def _knows_revision(revision: str) -> bool:
    """Whether the installed Prefect has that step of the database's history. Prefect itself is not imported."""
    spec = find_spec("prefect")
    assert spec is not None
    steps = Path(*(spec.submodule_search_locations or [])[:1]) / "server/database/_migrations/versions/postgresql"
    # A file's name has the step's id after its date. Source: prefect server/database/alembic.ini, 3.8.8.
    return any(f"_{revision}_" in f"{step.stem}_" for step in steps.glob("*.py"))


@dataclass(frozen=True)
class Redis:
    """One numbered database of a Redis server.

    Args:
        url: For the server, with user info.
        place: `host:port/number`, which may be shown.
    """

    url: str = field(repr=False)
    place: str
    password: str | None = field(repr=False)

    @classmethod
    def read(cls, address: str) -> Redis:
        """Of an address: `redis://:password@host:port/number`, or `rediss://` for TLS.

        Raises:
            ConfigurationError: it is none, or what it takes is not installed; the text does not repeat it.
        """
        if find_spec("prefect_redis") is None:
            _refuse(f"Prefect's part for Redis is not installed: {install_extra('stack')}", "redis")
        try:
            parts = urlsplit(address)
            port, number = parts.port or 6379, parts.path.strip("/") or "0"
        except ValueError:
            parts, port, number = urlsplit(""), 0, ""
        if parts.scheme not in ("redis", "rediss") or not parts.hostname or not number.isdecimal():
            _refuse("is no address like redis://host:6379/0 or rediss://user:password@host:6379/0", "redis")
        url = urlunsplit(parts._replace(path=f"/{number}"))
        return cls(url, f"{parts.hostname}:{port}/{number}", parts.password)

    @property
    def settings(self) -> dict[str, str]:
        """What makes a server use it for events, their order, leases of limits, and its work of the background."""
        found = {
            "PREFECT_REDIS_MESSAGING_URL": self.url,
            "PREFECT_SERVER_EVENTS_MESSAGING_BROKER": "prefect_redis.messaging",
            "PREFECT_SERVER_EVENTS_MESSAGING_CACHE": "prefect_redis.messaging",
            "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
        }
        if self.password is None:
            # The address of this one is no secret to Prefect: its API shows it to every client that may read
            # `/admin/settings`. With one server nothing is lost by keeping that work in its memory.
            # Source: prefect settings/models/server/docket.py (`url: str`), server/api/admin.py, 3.8.8.
            found["PREFECT_SERVER_DOCKET_URL"] = self.url
        return found

    @property
    def words(self) -> set[str]:
        """What may not be shown."""
        return _forms(self.password)

    def look(self, owner: str) -> None:
        """Ask it, and mark it as belonging to that database.

        Raises:
            ConfigurationError: it cannot be reached, is too old, or serves something else.
        """
        import redis

        mine = hashlib.sha256(owner.encode()).hexdigest()[:32]
        # Connections are closed one by one: a client that is collected later would warn of them.
        client = redis.Redis.from_url(
            self.url, socket_timeout=SECONDS, socket_connect_timeout=SECONDS, decode_responses=True, protocol=2
        )
        try:
            version = str(client.info("server")["redis_version"])
            size = int(client.dbsize())
            if size == 0:
                client.set(_MARK, mine)
            theirs = client.get(_MARK)
        except (redis.RedisError, OSError) as e:
            said = _without(" ".join(str(e).split()) or type(e).__name__, self.words)
            _refuse(f"Redis at {self.place} cannot be used: {said}", "redis")
        finally:
            client.close()
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
            oldest = ".".join(map(str, OLDEST_REDIS))
            _refuse(f"Redis at {self.place} is version {version}; Prefect needs {oldest} or newer", "redis")
        if theirs != mine:
            whose = "keys of something else" if theirs is None else "the events of another Prefect's database"
            _refuse(f"Redis at {self.place} holds {whose}: name another number, or empty it", "redis")


@dataclass(frozen=True)
class Backing:
    """What a stack's server keeps its state in. Without a database: SQLite, in the stack's home."""

    database: Database | None = None
    redis: Redis | None = None

    @classmethod
    def read(cls, database: str | None, redis: str | None) -> Backing:
        """Of two addresses.

        Raises:
            ConfigurationError: one of them is none; or there is a Redis without a database.
        """
        if redis is not None and database is None:
            _refuse("is for a server on PostgreSQL: name a --database too", "redis")
        return cls(None if database is None else Database.read(database), None if redis is None else Redis.read(redis))

    @property
    def settings(self) -> dict[str, str]:
        """Environment of the server's process, and of no other."""
        return {name: value for part in self._parts for name, value in part.settings.items()}

    @property
    def words(self) -> tuple[str, ...]:
        """What no text may show, the longest first."""
        return tuple(sorted({word for part in self._parts for word in part.words}, key=len, reverse=True))

    @property
    def _parts(self) -> Sequence[Database | Redis]:
        return [part for part in (self.database, self.redis) if part is not None]

    def look(self) -> None:
        """Ask whatever is named; nothing is created but a mark in the Redis.

        Raises:
            ConfigurationError: something cannot be used; the text says what and the remedy.
        """
        if self.database is not None:
            owner = self.database.look()
            if self.redis is not None:
                self.redis.look(owner)

    def __str__(self) -> str:
        if self.database is None:
            return "SQLite"
        return f"PostgreSQL at {self.database.place}" + (f", Redis at {self.redis.place}" if self.redis else "")


def _refuse(reason: str, what: str = "database") -> NoReturn:
    raise ConfigurationError(reason, field=what) from None


def _forms(secret: str | None) -> set[str]:
    return {form for form in (secret, quote(secret, safe=""), quote_plus(secret)) if form} if secret else set()


def _without(text: str, words: set[str]) -> str:
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, "***")
    return text


def _apart(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run in a loop and thread of its own: whoever starts a stack may have a loop running."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(work())).result()
