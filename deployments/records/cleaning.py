"""What a page of orders means: plain functions of plain values, tested without Prefect, network or database."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, TypedDict

MOST_CENTS = 10**15
_FIELDS = ("id", "customer", "currency", "amount")


class Order(TypedDict):
    """A row of the table `orders`: the amount in whole cents of its currency."""

    id: str
    page: str
    customer: str
    currency: str
    cents: int


class BadRecordError(ValueError):
    """A page or a record in it is not what it should be; the text names it."""


def orders_of(body: bytes, page: str) -> list[Order]:
    """The orders of a page as it came, by id; of several with one id the last, because sources repeat corrections.

    Raises:
        BadRecordError: it is no page, or an order in it is none.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as e:
        raise BadRecordError(f"page {page}: is no JSON: {e}") from e
    if not isinstance(content, dict) or not isinstance(content.get("orders"), list):
        raise BadRecordError(f"page {page}: has no list 'orders'")
    found = {order["id"]: order for order in (clean(raw, page) for raw in content["orders"])}
    return [found[id_] for id_ in sorted(found)]


def clean(raw: Any, page: str) -> Order:
    """One order as a row: no white space around texts, currency in capitals, amount in cents.

    What one database takes and another refuses (control characters, numbers out of range) is refused here, so that
    all of them hold the same.

    Raises:
        BadRecordError: a field is missing or odd; names the order and the field.
    """
    if not isinstance(raw, Mapping):
        raise BadRecordError(f"page {page}: an order is of type {type(raw).__name__}")
    text = {name: "" if raw.get(name) is None else str(raw[name]).strip() for name in _FIELDS}
    try:
        for name, value in text.items():
            if not value or not value.isprintable():
                raise BadRecordError(f"{name} {'holds control characters' if value else 'is missing'}")
        if not re.fullmatch("[A-Za-z]{3}", text["currency"]):
            raise BadRecordError(f"currency {text['currency']!r} is none")
        cents = cents_of(text["amount"])
    except BadRecordError as e:
        raise BadRecordError(f"page {page}: order {text['id'] or '?'}: {e}") from e
    return Order(id=text["id"], page=page, customer=text["customer"], currency=text["currency"].upper(), cents=cents)


def cents_of(amount: str) -> int:
    """An amount as people and programs write it ("12.5", "12,50", "1 200.00") in cents, halves away from zero.

    Raises:
        BadRecordError: it is no number, or one that is out of range.
    """
    try:
        value = Decimal("".join(amount.split()).replace(",", "."))
        cents = int((value * 100).quantize(Decimal(1), ROUND_HALF_UP))
    except (ArithmeticError, ValueError) as e:
        raise BadRecordError(f"amount {amount!r} is no number") from e
    if abs(cents) > MOST_CENTS:
        raise BadRecordError(f"amount {amount!r} is out of range")
    return cents


def in_euro(orders: Iterable[Order], rates: Mapping[str, str]) -> list[dict[str, Any]]:
    """Orders as rows of the table `sales`.

    Args:
        rates: Euros for one unit of each currency.

    Raises:
        BadRecordError: a currency has no rate.
    """
    rows = []
    for order in orders:
        if (rate := rates.get(order["currency"])) is None:
            raise BadRecordError(f"page {order['page']}: order {order['id']}: no rate for {order['currency']}")
        cents = (Decimal(order["cents"]) * Decimal(rate)).quantize(Decimal(1), ROUND_HALF_UP)
        rows.append({"order_id": order["id"], "page": order["page"], "euro_cents": int(cents)})
    return rows
