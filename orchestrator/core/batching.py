"""Items to batches: cut by count, bytes, weight and group at once, one item at a time in constant memory.

A batch is a run of adjacent items, as long as every limit allows: an item begins a new batch only when the batch
before it could not have taken it. So the cut depends on nothing but the items and the limits, and a parent that
starts again cuts the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from decimal import Context, Decimal
from hashlib import blake2b
from typing import TypeVar

from orchestrator.errors import ConfigurationError

T = TypeVar("T")

REMEMBERED_GROUPS = 10_000  # ended groups kept (16 bytes each) to notice one that comes back


class BatchingError(ValueError):
    """An item that no batch can hold; the source layer adds the file and line."""


class ItemTooLargeError(BatchingError):
    """One item alone is above a limit of a batch.

    Args:
        limit_name: `max_bytes` or `max_weight`.
        size: Of the item: bytes, or its weight.
        limit: Of a batch, in the same unit.
    """

    def __init__(self, limit_name: str, size: float | Decimal, limit: float) -> None:
        unit = "item of {} bytes" if limit_name == "max_bytes" else "item of weight {}"
        super().__init__(
            f"{unit.format(_plain(size))} is above {limit_name}={_plain(limit)} by itself; "
            f"raise {limit_name} to at least {_plain(size)} or leave the item out"
        )
        self.limit_name, self.size, self.limit = limit_name, size, limit

    def __reduce__(self) -> tuple[type[ItemTooLargeError], tuple[str, float | Decimal, float]]:
        return type(self), (self.limit_name, self.size, self.limit)


class WeightError(BatchingError):
    """An item's weight is missing, or no finite number >= 0; `weight` is what was found."""

    def __init__(self, weight: object) -> None:
        found = "missing" if weight is None else f"{_shown(weight)}"
        super().__init__(f"the weight is {found}; it must be a finite number >= 0")
        self.weight = weight


class Cutter:
    """Tells for each item of a stream whether it begins a new batch.

    Weights add up as they are written (0.1 + 0.2 is 0.3), not as binary fractions do, so that ten items of 0.1 fill a
    batch of 1 on every machine.

    Args:
        batch_size: Most items of a batch, >= 1.
        max_bytes: Most bytes of a batch, the sum of its items' sizes; None for no limit.
        max_weight: Most weight of a batch, > 0; None for no limit.

    Raises:
        ConfigurationError: a limit is out of range; `field` names it.
    """

    def __init__(self, batch_size: int, max_bytes: int | None = None, max_weight: float | None = None) -> None:
        if type(batch_size) is not int or batch_size < 1:
            raise ConfigurationError(f"must be a whole number >= 1, got {_shown(batch_size)}", field="batch_size")
        if max_bytes is not None and (type(max_bytes) is not int or max_bytes < 1):
            raise ConfigurationError(
                f"must be a whole number of bytes >= 1, got {_shown(max_bytes)}", field="max_bytes"
            )
        if max_weight is not None and (not _is_finite(max_weight) or max_weight <= 0):
            raise ConfigurationError(f"must be a finite number > 0, got {_shown(max_weight)}", field="max_weight")
        self._batch_size, self._max_bytes, self._max_weight = batch_size, max_bytes, max_weight
        self._weight_limit = None if max_weight is None else _decimal(max_weight)
        self._context = Context(prec=60)  # of our own: the caller's decimal settings do not change a cut
        self._count = self._bytes = 0
        self._weight = Decimal(0)
        self._group: str | None = None
        self._ended: set[bytes] = set()
        self._batches = self._items = self._returns = 0
        self._first_returned: str | None = None

    @property
    def batches(self) -> int:
        """Batches begun so far."""
        return self._batches

    @property
    def items(self) -> int:
        """Items taken so far."""
        return self._items

    @property
    def returned_groups(self) -> int:
        """How often a group came back after another one: 0 for sorted input.

        Memory is bounded: of more than `REMEMBERED_GROUPS` groups only the first ones are recognised.
        """
        return self._returns

    @property
    def first_returned_group(self) -> str | None:
        """The first group that came back; None when none did."""
        return self._first_returned

    def add(self, size_bytes: int, weight: float | None = None, group: str | None = None) -> bool:
        """Take the next item.

        Args:
            size_bytes: Its size, as it counts towards `max_bytes`.
            weight: Its weight; may be None only without `max_weight`.
            group: The value of `group_by` as text; None when not grouped.

        Returns:
            True when it begins a new batch (the first item always does).

        Raises:
            ItemTooLargeError: it is above `max_bytes` or `max_weight` by itself.
            WeightError: its weight is no finite number >= 0, or is missing though there is a `max_weight`.
            After either the cutter is as before: the item was not taken.
        """
        if self._max_bytes is not None and size_bytes > self._max_bytes:
            raise ItemTooLargeError("max_bytes", size_bytes, self._max_bytes)
        added = self._weight_of(weight)
        total = self._context.add(self._weight, added) if self._weight_limit is not None else added
        begins = (
            self._items == 0
            or self._count >= self._batch_size
            or group != self._group
            or (self._max_bytes is not None and self._bytes + size_bytes > self._max_bytes)
            or (self._weight_limit is not None and total > self._weight_limit)
        )
        if begins:
            if self._items and group != self._group:
                self._note_change_of_group(group)
            self._count = self._bytes = 0
            self._batches += 1
            self._group, total = group, added
        self._items += 1
        self._count += 1
        self._bytes += size_bytes
        self._weight = total
        return begins

    def _weight_of(self, weight: float | None) -> Decimal:
        if weight is None and self._weight_limit is None:
            return _NOTHING
        if weight is None or not _is_finite(weight) or weight < 0:
            raise WeightError(weight)
        exact = _decimal(weight)
        if self._max_weight is not None and self._weight_limit is not None and exact > self._weight_limit:
            raise ItemTooLargeError("max_weight", exact if isinstance(weight, int) else weight, self._max_weight)
        return exact

    def _note_change_of_group(self, new: str | None) -> None:
        if len(self._ended) < REMEMBERED_GROUPS:
            self._ended.add(_digest(self._group))
        if _digest(new) in self._ended:
            self._returns += 1
            if self._first_returned is None:
                self._first_returned = new


def cut(
    items: Iterable[T],
    *,
    batch_size: int,
    max_bytes: int | None = None,
    max_weight: float | None = None,
    size: Callable[[T], int] = lambda item: 0,
    weight: Callable[[T], float | None] = lambda item: None,
    group: Callable[[T], str | None] = lambda item: None,
) -> Iterator[list[T]]:
    """The batches of a collection, in order; joined together they are the collection.

    Args:
        items: The collection; it is consumed one batch ahead at most.
        batch_size, max_bytes, max_weight: As for `Cutter`.
        size, weight, group: What the cutter is told of each item.

    Raises:
        ConfigurationError: a limit is out of range.
        BatchingError: an item fits in no batch.
    """
    cutter = Cutter(batch_size, max_bytes, max_weight)
    batch: list[T] = []
    for item in items:
        if cutter.add(size(item), weight(item), group(item)) and batch:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


_NOTHING = Decimal(0)


def _is_finite(value: object) -> bool:
    """A number, and finite; booleans are not numbers here, and whole numbers of any length are."""
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def _decimal(number: float) -> Decimal:
    """The number as people write it; `Decimal(0.1)` would be the binary fraction next to it."""
    return Decimal(number) if isinstance(number, int) else Decimal(repr(number))


def _digest(group: str | None) -> bytes:
    # surrogatepass: JSON may hold lone surrogates. A group None and a group "" are different groups.
    data = b"" if group is None else b"=" + group.encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=16).digest()


def _plain(number: float | Decimal) -> str:
    """For messages: separators for readable numbers, an exponent for absurd ones."""
    if isinstance(number, float):
        return f"{number:g}" if not number.is_integer() or abs(number) >= 1e15 else f"{int(number):,}"
    return f"{number:,}" if abs(number) < 10**15 else f"{Decimal(number):.3E}"


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return _plain(Decimal(value))  # `repr` of an int of more than 4,300 digits is refused by Python
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
