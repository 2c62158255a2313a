"""Records, the first kind of test: plain functions, called with plain values. No Prefect, no network, no database."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.records.cleaning import MOST_CENTS, BadRecordError, Order, cents_of, clean, in_euro, orders_of

ROOT = Path(__file__).parents[3]
RECORDS = ROOT / "deployments" / "records"
RAW = {"id": "o1", "customer": "Ada", "currency": "EUR", "amount": "1"}


def page(*orders: Any) -> bytes:
    return json.dumps({"orders": orders}).encode()


def test_an_order_becomes_a_row() -> None:
    raw = {"id": " o1 ", "customer": "Ada\t", "currency": "usd", "amount": "12,50", "note": "left out"}
    assert clean(raw, "p") == {"id": "o1", "page": "p", "customer": "Ada", "currency": "USD", "cents": 1250}


@pytest.mark.parametrize(
    ("amount", "cents"),
    [("12.5", 1250), ("12,50", 1250), ("1 200.00", 120_000), ("0", 0), ("-3", -300), ("0.005", 1), ("-0.005", -1),
     ("1e2", 10_000)],
)  # fmt: skip
def test_amounts_are_read_as_people_and_programs_write_them(amount: str, cents: int) -> None:
    assert cents_of(amount) == cents


@pytest.mark.parametrize("amount", ["", "ten", "NaN", "Infinity", "1.2.3", "True", "1e999999999", "9" * 30])
def test_what_is_no_amount_is_refused(amount: str) -> None:
    with pytest.raises(BadRecordError, match="amount"):
        cents_of(amount)


@given(st.integers(-MOST_CENTS, MOST_CENTS))
def test_every_amount_of_cents_is_read_back_from_its_text(cents: int) -> None:
    sign, (euros, rest) = "-" if cents < 0 else "", divmod(abs(cents), 100)
    assert cents_of(f"{sign}{euros}.{rest:02}") == cents


def test_an_amount_of_nought_is_not_missing() -> None:
    assert clean(RAW | {"amount": 0}, "p")["cents"] == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"id": " "}, r"page p: order \?: id is missing"),
        ({"customer": None}, "page p: order o1: customer is missing"),
        ({"amount": "ten"}, "page p: order o1: amount 'ten' is no number"),
        ({"currency": "EURO"}, "page p: order o1: currency 'EURO' is none"),
        ({"customer": "A\x00da"}, "customer holds control characters"),  # SQLite takes it, PostgreSQL does not
        ({"customer": "\ud800"}, "customer holds control characters"),
    ],
)
def test_an_odd_field_is_named_with_its_page_and_order(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRecordError, match=said):
        clean(RAW | wrong, "p")


def test_of_orders_with_one_id_the_last_counts_and_rows_come_in_the_order_of_ids() -> None:
    body = page(RAW | {"id": "b"}, RAW | {"id": "a"}, RAW | {"id": "b", "amount": "2"})
    assert [(o["id"], o["cents"]) for o in orders_of(body, "p")] == [("a", 100), ("b", 200)]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"orders": [', "page p: is no JSON: Expecting value"),
        (b"\xff\xfe\xfd", "page p: is no JSON"),
        (b"[" * 200_000, "page p: is no JSON"),
        (b"[1, 2]", "page p: has no list 'orders'"),
        (b'{"orders": null}', "page p: has no list 'orders'"),
        (b'{"orders": [7]}', "page p: an order is of type int"),
    ],
)
def test_a_malformed_page_is_named(body: bytes, said: str) -> None:
    with pytest.raises(BadRecordError, match=said):
        orders_of(body, "p")


def test_sales_are_in_euro_and_a_currency_without_a_rate_is_named() -> None:
    order = Order(id="o1", page="p", customer="Ada", currency="USD", cents=1001)
    assert in_euro([order], {"USD": "0.5"}) == [{"order_id": "o1", "page": "p", "euro_cents": 501}]
    with pytest.raises(BadRecordError, match="page p: order o1: no rate for USD"):
        in_euro([order], {"EUR": "1"})


def test_cleaning_needs_neither_prefect_nor_a_database() -> None:
    code = "import sys, deployments.records.cleaning; print({'prefect', 'sqlalchemy', 'httpx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_modules_import_in_one_direction() -> None:
    order = ["cleaning", "warehouse", "tasks", "flows"]
    for place, module in enumerate(order):
        tree = ast.parse((RECORDS / f"{module}.py").read_text())
        imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        ours = {name.removeprefix("deployments.records.") for name in imported if "deployments.records" in name}
        assert ours <= set(order[:place]), f"{module} imports {ours}"
