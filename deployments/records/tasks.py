"""The steps as Prefect tasks: what is retried and when, what a run is called. `task.fn` is the plain function."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx
from prefect import State, Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.tasks import exponential_backoff
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from deployments.records.cleaning import Order, in_euro, orders_of
from deployments.records.warehouse import ORDERS, SALES, TOTALS, connect, refused, upsert

RATES = {"EUR": "1", "USD": "0.92", "GBP": "1.17", "SEK": "0.088"}


class ExtractError(Exception):
    """The source did not give a page. `passing`: asking again may help."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class LoadError(Exception):
    """The warehouse refused a page: nothing of it was written. `passing` as above."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


def may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether another try can help: not for a page that is malformed, or a row that breaks a constraint."""
    try:
        state.result()
    except (ExtractError, LoadError) as e:
        return e.passing
    except Exception:  # noqa: BLE001 - asked what it is, not to handle it
        return False
    return False


_STEP: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": exponential_backoff(1),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": may_pass,
    "persist_result": False,
    "cache_policy": NO_CACHE,  # nothing to look up: no hash over all rows of a page
}


@task(task_run_name="extract {page}", **_STEP)
def extract(page: str, source: str, timeout_seconds: float = 10) -> list[Order]:
    """Fetch one page and clean it.

    Raises:
        ExtractError: the source did not give it.
        BadRecordError: what it gave is no page of orders.
    """
    try:
        answer = httpx.get(f"{source}/pages/{quote(page, safe='')}", timeout=timeout_seconds)
    except httpx.TimeoutException as e:
        raise ExtractError(f"page {page}: no answer in {timeout_seconds:g} s", passing=True) from e
    except httpx.TransportError as e:
        raise ExtractError(f"page {page}: {e or type(e).__name__}", passing=True) from e
    if answer.is_error:
        passing = answer.status_code == 429 or answer.is_server_error
        raise ExtractError(f"page {page}: HTTP {answer.status_code} {answer.reason_phrase}", passing=passing)
    return orders_of(answer.content, page)


@task(task_run_name="load {page}", **_STEP)
def load(orders: list[Order], page: str, warehouse: str | None) -> dict[str, Any]:
    """Write a page's orders: all, or, with an error, none.

    Raises:
        LoadError: the warehouse refused them, or could not be reached.
    """
    try:
        with loading(page, warehouse) as connection:
            changed = upsert(connection, ORDERS, orders)
    except LoadError as e:
        if isinstance(e.__cause__, IntegrityError) and (order := refused(connect(warehouse), ORDERS, orders)):
            raise LoadError(str(e).replace(f"page {page}:", f"page {page}: order {order}:", 1)) from e
        raise
    return {"page": page, "orders": len(orders), "changed": changed}


@task(task_run_name="transform {page}", **_STEP)
def transform(page: str, warehouse: str | None) -> dict[str, Any]:
    """Make the sales of a page from its orders.

    Raises:
        BadRecordError: an order's currency has no rate.
        LoadError: as for `load`.
    """
    with loading(page, warehouse) as connection:
        found = connection.execute(select(ORDERS).where(ORDERS.c.page == page).order_by(ORDERS.c.id)).mappings()
        sales = in_euro([Order(**row) for row in found], RATES)  # type: ignore[typeddict-item]
        changed = upsert(connection, SALES, sales)
    return {"page": page, "sales": len(sales), "changed": changed}


@task(task_run_name="publish {page}", **_STEP)
def publish(page: str, warehouse: str | None) -> dict[str, Any]:
    """Make the total of a page from its sales.

    Raises:
        LoadError: as for `load`.
    """
    with loading(page, warehouse) as connection:
        wanted = select(func.count(), func.coalesce(func.sum(SALES.c.euro_cents), 0)).where(SALES.c.page == page)
        count, cents = connection.execute(wanted).one()
        changed = upsert(connection, TOTALS, [{"page": page, "orders": count, "euro_cents": int(cents)}])
    return {"page": page, "orders": count, "euro_cents": int(cents), "changed": changed}


@contextmanager
def loading(page: str, warehouse: str | None) -> Iterator[Connection]:
    """A transaction; what the database says against it becomes one line that names the page."""
    try:
        with connect(warehouse).begin() as connection:
            yield connection
    except DBAPIError as e:
        said = getattr(getattr(e.orig, "diag", None), "message_primary", None) or str(e.orig)  # without the row itself
        raise LoadError(f"page {page}: {' '.join(said.split())}", passing=isinstance(e, OperationalError)) from e


def pages_of(source: str) -> list[dict[str, str]]:
    """The pages that the source has now, as items."""
    answer = httpx.get(f"{source}/pages", timeout=30)
    answer.raise_for_status()
    return [{"page": str(page)} for page in answer.json()["pages"]]
