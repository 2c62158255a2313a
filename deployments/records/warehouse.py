"""The warehouse: its tables, and an upsert by key after which a second run changes nothing."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

METADATA = sa.MetaData()
ORDERS = sa.Table(
    "orders", METADATA,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("page", sa.String, nullable=False, index=True),
    sa.Column("customer", sa.String, nullable=False),
    sa.Column("currency", sa.String, nullable=False),
    sa.Column("cents", sa.BigInteger, sa.CheckConstraint("cents >= 0", name="cents_not_negative"), nullable=False),
)  # fmt: skip
SALES = sa.Table(
    "sales", METADATA,
    sa.Column("order_id", sa.String, primary_key=True),
    sa.Column("page", sa.String, nullable=False, index=True),
    sa.Column("euro_cents", sa.BigInteger, nullable=False),
)  # fmt: skip
TOTALS = sa.Table(
    "totals", METADATA,
    sa.Column("page", sa.String, primary_key=True),
    sa.Column("orders", sa.BigInteger, nullable=False),
    sa.Column("euro_cents", sa.BigInteger, nullable=False),
)  # fmt: skip

_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_WAIT = {"connect_timeout": 10, "options": "-c lock_timeout=60s"}  # PostgreSQL waits for ever by default
_ROWS = 1000  # of one statement: SQLite takes 32,766 values at most
_LOCK = 7_301_457  # any number that only this package uses

_engines: dict[str, sa.Engine] = {}
_opening = threading.Lock()


def place(url: str | None) -> str:
    """Where the warehouse is: the URL itself, else `RECORDS_WAREHOUSE` of the process.

    Raises:
        ValueError: there is none, or it holds a password, which everybody would read in the run's parameters.
    """
    if url and sa.make_url(url).password:
        raise ValueError("the warehouse's URL holds a password: give it to the worker as PGPASSWORD, or in ~/.pgpass")
    url = url or os.environ.get("RECORDS_WAREHOUSE")
    if not url:
        raise ValueError("give the parameter `warehouse`, or set RECORDS_WAREHOUSE where the worker runs")
    return url


def connect(url: str | None) -> sa.Engine:
    """The warehouse with its tables; one engine per process, for all its threads.

    Args:
        url: `sqlite:////srv/records.db` or `postgresql+psycopg://user@host/name`; None: see `place`.
    """
    where = place(url)
    with _opening:
        if where not in _engines:
            engine = _open(where)
            with engine.begin() as connection:
                if engine.dialect.name == "postgresql":  # of two that create a table at once, one fails
                    connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
                METADATA.create_all(connection)
            _engines[where] = engine
        return _engines[where]


def upsert(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert rows, or make those of the same key equal to them; returns how many rows that changed.

    Rows that are there as they should be are not written again. Give rows in the order of their keys: two transactions
    that lock the same rows in another order would wait for each other.
    """
    changed = 0
    for begin in range(0, len(rows), _ROWS):
        statement = _INSERT[connection.dialect.name](table).values(list(rows[begin : begin + _ROWS]))
        new = {c.name: statement.excluded[c.name] for c in table.columns if not c.primary_key}
        statement = statement.on_conflict_do_update(
            index_elements=list(table.primary_key.columns),
            set_=new,
            where=sa.or_(*(table.c[name].is_distinct_from(value) for name, value in new.items())),
        )
        changed += connection.execute(statement, execution_options={"preserve_rowcount": True}).rowcount
    return changed


def refused(engine: sa.Engine, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The key of the first row that breaks a constraint, which databases do not say alike; nothing is written."""
    with engine.connect() as connection:  # without a commit
        for row in rows:
            try:
                upsert(connection, table, [row])
            except sa.exc.IntegrityError:
                return ", ".join(str(row[c.name]) for c in table.primary_key.columns)
    return None


def _open(url: str) -> sa.Engine:
    wait = _WAIT if url.startswith("postgresql") else {}
    try:
        engine = sa.create_engine(url, pool_pre_ping=True, connect_args=wait)
    except ModuleNotFoundError as e:
        raise RuntimeError(f"{e}; for PostgreSQL: pip install 'psycopg[binary]>=3.2'") from e
    if engine.dialect.name not in _INSERT:
        raise ValueError(f"no upsert is written here for {engine.dialect.name}; there are {', '.join(_INSERT)}")
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _several_writers)
        sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _several_writers(connection: Any, _: Any) -> None:
    """SQLite has one writer at a time: the others wait for it instead of failing, and readers wait for nobody."""
    connection.isolation_level = None  # we say BEGIN ourselves: the driver would say it too late, or not at all
    for pragma in ("busy_timeout = 60000", "journal_mode = WAL", "synchronous = NORMAL"):
        connection.execute(f"PRAGMA {pragma}")
