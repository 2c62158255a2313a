"""Records, the second kind of test: a task's own function, `task.fn`, on a real source and real databases."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from deployments.records import warehouse
from deployments.records.cleaning import BadRecordError, Order
from deployments.records.tasks import ExtractError, LoadError, extract, load, pages_of, publish, transform
from deployments.records.warehouse import ORDERS, SALES, TOTALS, connect, place
from deployments.services.pages import Pages, make_pages
from tests.postgres import Postgres, postgres_server

FIRST, SECOND = "2025-01-01", "2025-01-02"


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[Pages]:
    make_pages(tmp_path / "pages", 2)
    with Pages(tmp_path / "pages") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.replace_faults({})  # lets go of what hangs
        server.shutdown()
        thread.join()


@pytest.fixture
def source(pages: Pages) -> str:
    return f"http://127.0.0.1:{pages.server_port}"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty warehouse of each kind."""
    if request.param == "sqlite":
        made = f"sqlite:///{tmp_path / 'warehouse.db'}"
    else:
        made = request.getfixturevalue("postgres").create(f"t{abs(hash(tmp_path)):x}")
    yield made
    if (engine := warehouse._engines.pop(made, None)) is not None:
        engine.dispose()


def rows(url: str, table: sa.Table) -> list[tuple[object, ...]]:
    with connect(url).begin() as connection:
        return [tuple(row) for row in connection.execute(table.select().order_by(*table.primary_key.columns))]


def order(number: int, cents: int = 100) -> Order:
    return Order(id=f"o{number:04}", page="p", customer="Ada", currency="EUR", cents=cents)


def test_a_page_is_fetched_and_cleaned(source: str) -> None:
    assert pages_of(source) == [{"page": FIRST}, {"page": SECOND}]
    orders = extract.fn(FIRST, source)
    assert len(orders) == 20
    assert {o["page"] for o in orders} == {FIRST}
    assert {o["currency"] for o in orders} <= {"EUR", "USD", "GBP", "SEK"}


@pytest.mark.parametrize(
    ("fault", "said", "passing"),
    [
        ("500", "HTTP 500 Internal Server Error", True),
        ("close", "Server disconnected", True),
        ("hang", "no answer in 0.3 s", True),
    ],
)
def test_a_page_that_the_source_does_not_give_is_named_and_may_come_later(
    pages: Pages, source: str, fault: str, said: str, passing: bool
) -> None:
    pages.replace_faults({FIRST: f"{fault} 1"})
    with pytest.raises(ExtractError, match=f"page {FIRST}: {said}") as caught:
        extract.fn(FIRST, source, timeout_seconds=0.3)
    assert caught.value.passing is passing
    assert len(extract.fn(FIRST, source)) == 20
    assert pages.requests == {FIRST: 2}


def test_what_asking_again_cannot_mend_is_not_asked_again(pages: Pages, source: str) -> None:
    with pytest.raises(ExtractError, match=r"page ../etc: HTTP 404 Not Found") as caught:
        extract.fn("../etc", source)
    assert not caught.value.passing
    (pages.folder / f"{FIRST}.json").write_text('{"orders": [')
    with pytest.raises(BadRecordError, match=f"page {FIRST}: is no JSON"):
        extract.fn(FIRST, source)


def test_a_source_that_is_not_there_is_said(source: str) -> None:
    with pytest.raises(ExtractError, match=r"page p: .*refused"):
        extract.fn("p", "http://127.0.0.1:9")


def test_loading_again_changes_nothing_and_a_correction_changes_its_row(url: str) -> None:
    orders = [order(n) for n in range(2500)]  # more than one statement takes
    assert load.fn(orders, "p", url) == {"page": "p", "orders": 2500, "changed": 2500}
    assert load.fn(orders, "p", url)["changed"] == 0
    orders[7]["cents"] = 5
    assert load.fn(orders, "p", url)["changed"] == 1
    assert len(rows(url, ORDERS)) == 2500
    assert rows(url, ORDERS)[7][-1] == 5


def test_a_row_that_breaks_a_constraint_is_named_and_nothing_of_its_page_is_loaded(url: str) -> None:
    with pytest.raises(LoadError, match=r"page p: order o0002: .*cents_not_negative") as caught:
        load.fn([order(1), order(2, -1), order(3)], "p", url)
    assert not caught.value.passing
    assert "Ada" not in str(caught.value)
    assert rows(url, ORDERS) == []


def test_a_warehouse_that_cannot_be_reached_is_said_and_may_come_back(tmp_path: Path) -> None:
    for url in (f"sqlite:///{tmp_path}/no/such/folder/x.db", "postgresql+psycopg://nobody@127.0.0.1:9/none"):
        with pytest.raises(LoadError, match=r"page p: .*(unable to open|refused)") as caught:
            load.fn([order(1)], "p", url)
        assert caught.value.passing


def test_several_that_write_at_once_wait_for_each_other(url: str) -> None:
    """Tables that nobody has made yet, and the same rows, from many threads."""
    batches = [[order(n) for n in range(begin, begin + 200)] for begin in range(0, 1000, 50)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda batch: load.fn(batch, "p", url), batches))
    assert len(rows(url, ORDERS)) == 1150


def test_sales_and_totals_follow_from_orders(url: str) -> None:
    load.fn([order(1, 250), order(2, 50) | {"currency": "USD"}], "p", url)  # type: ignore[list-item]
    assert transform.fn("p", url) == {"page": "p", "sales": 2, "changed": 2}
    assert rows(url, SALES) == [("o0001", "p", 250), ("o0002", "p", 46)]
    assert publish.fn("p", url) == {"page": "p", "orders": 2, "euro_cents": 296, "changed": 1}
    assert publish.fn("p", url)["changed"] == transform.fn("p", url)["changed"] == 0
    assert rows(url, TOTALS) == [("p", 2, 296)]


def test_a_currency_without_a_rate_fails_its_page_alone(url: str) -> None:
    load.fn([order(1) | {"currency": "XXX"}], "p", url)  # type: ignore[list-item]
    with pytest.raises(BadRecordError, match="page p: order o0001: no rate for XXX"):
        transform.fn("p", url)
    assert rows(url, SALES) == []


def test_a_password_does_not_go_into_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECORDS_WAREHOUSE", raising=False)
    with pytest.raises(ValueError, match="PGPASSWORD") as caught:
        place("postgresql+psycopg://ada:" + "secret@db/records")
    assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="RECORDS_WAREHOUSE"):
        place(None)
    monkeypatch.setenv("RECORDS_WAREHOUSE", "sqlite:///x.db")
    assert place("") == "sqlite:///x.db"


def test_other_databases_are_refused_by_name() -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"mysql|psycopg\[binary\]"):
        connect("mysql://db/records")


def test_pages_are_the_same_every_time(tmp_path: Path) -> None:
    assert make_pages(tmp_path, 3) == make_pages(tmp_path / "again", 3)
    one, other = (json.loads((folder / f"{FIRST}.json").read_text()) for folder in (tmp_path, tmp_path / "again"))
    assert one == other
