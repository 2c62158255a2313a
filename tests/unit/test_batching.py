"""Cutting: each limit by itself, what no batch can hold, groups that come back."""

from __future__ import annotations

import decimal
import pickle
import tracemalloc
from typing import Any

import pytest

from orchestrator.core.batching import (
    REMEMBERED_GROUPS,
    BatchingError,
    Cutter,
    ItemTooLargeError,
    WeightError,
    cut,
)
from orchestrator.errors import ConfigurationError


def sizes(batches: list[list[Any]]) -> list[int]:
    return [len(b) for b in batches]


def test_a_count_fills_each_batch_but_the_last() -> None:
    assert list(cut(range(7), batch_size=3)) == [[0, 1, 2], [3, 4, 5], [6]]


def test_an_empty_collection_has_no_batch() -> None:
    assert list(cut([], batch_size=3)) == []


def test_bytes_may_fill_a_batch_exactly_and_not_by_one_more() -> None:
    assert list(cut([4, 6, 5, 6], batch_size=9, max_bytes=10, size=lambda n: n)) == [[4, 6], [5], [6]]


def test_weights_add_up_as_they_are_written() -> None:
    assert sizes(list(cut([0.1] * 20, batch_size=99, max_weight=1, weight=lambda w: w))) == [10, 10]
    assert sizes(list(cut([0.1, 0.2], batch_size=99, max_weight=0.3, weight=lambda w: w))) == [2]


def test_the_callers_decimal_settings_do_not_change_a_cut() -> None:
    weights = [1.23456789] * 8
    usual = list(cut(weights, batch_size=99, max_weight=4.93827156, weight=lambda w: w))
    with decimal.localcontext(decimal.Context(prec=2)):
        assert list(cut(weights, batch_size=99, max_weight=4.93827156, weight=lambda w: w)) == usual
    assert sizes(usual) == [4, 4]


def test_items_without_weight_cost_nothing() -> None:
    assert sizes(list(cut([0, 5, 0, 0, 1], batch_size=99, max_weight=5, weight=lambda w: w))) == [4, 1]


def test_a_batch_holds_one_group() -> None:
    assert list(cut("aabbba", batch_size=2, group=lambda g: g)) == [["a", "a"], ["b", "b"], ["b"], ["a"]]


def test_no_group_and_the_empty_group_are_two() -> None:
    assert list(cut([None, ""], batch_size=9, group=lambda g: g)) == [[None], [""]]


def test_all_limits_hold_at_once() -> None:
    items = [("a", 1, 1.0), ("a", 9, 1.0), ("a", 1, 3.0), ("a", 1, 1.0), ("b", 1, 1.0)]
    batches = list(
        cut(
            items,
            batch_size=2,
            max_bytes=9,
            max_weight=3,
            size=lambda i: i[1],
            weight=lambda i: i[2],
            group=lambda i: i[0],
        )
    )
    assert sizes(batches) == [1, 1, 1, 1, 1]


def test_the_collection_is_consumed_as_batches_are_taken() -> None:
    taken: list[int] = []

    def source() -> Any:
        for n in range(100):
            taken.append(n)
            yield n

    batches = cut(source(), batch_size=10)
    next(batches)
    assert len(taken) == 11


def test_the_cutter_counts_items_and_batches() -> None:
    cutter = Cutter(2)
    assert [cutter.add(1) for _ in range(5)] == [True, False, True, False, True]
    assert (cutter.items, cutter.batches) == (5, 3)


@pytest.mark.parametrize(
    ("cutter", "size", "weight", "text", "facts"),
    [
        (Cutter(9, max_bytes=1000), 1234, None, "1,234 bytes is above max_bytes=1,000", ("max_bytes", 1234, 1000)),
        (Cutter(9, max_weight=2), 1, 2.5, "item of weight 2.5 is above max_weight=2", ("max_weight", 2.5, 2)),
        (Cutter(9, max_weight=2.0), 1, 3, "item of weight 3 is above max_weight=2", ("max_weight", 3, 2.0)),
        (Cutter(9, max_weight=2), 1, 10**400, "item of weight 1.000E+400 is above", ("max_weight", 10**400, 2)),
        (Cutter(9, max_weight=2), 1, 1e300, "item of weight 1e+300 is above", ("max_weight", 1e300, 2)),
    ],
)  # fmt: skip
def test_an_item_too_large_for_any_batch_is_named_with_both_numbers(
    cutter: Cutter, size: int, weight: float | None, text: str, facts: tuple[object, ...]
) -> None:
    with pytest.raises(ItemTooLargeError, match=text.replace("+", r"\+")) as caught:
        cutter.add(size, weight)
    assert (caught.value.limit_name, caught.value.size, caught.value.limit) == facts
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, BatchingError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.size) == (str(caught.value), caught.value.size)


@pytest.mark.parametrize("weight", [None, -1, -0.5, float("nan"), float("inf"), True, "3", [1] * 99])
def test_a_weight_is_a_finite_number_from_zero(weight: Any) -> None:
    with pytest.raises(WeightError, match="finite number >= 0") as caught:
        Cutter(9, max_weight=5).add(1, weight)
    assert caught.value.weight is weight
    assert len(str(caught.value)) < 150


def test_a_negative_weight_is_refused_without_a_limit_too() -> None:
    with pytest.raises(WeightError, match="the weight is -1;"):
        Cutter(9).add(1, -1)


def test_a_refused_item_leaves_the_cut_as_it_was() -> None:
    cutter = Cutter(2, max_bytes=10)
    assert cutter.add(5)
    with pytest.raises(ItemTooLargeError):
        cutter.add(11)
    with pytest.raises(WeightError):
        cutter.add(1, -1)
    assert not cutter.add(5)
    assert (cutter.items, cutter.batches) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((0,), "batch_size"),
        ((True,), "batch_size"),
        ((2.0,), "batch_size"),
        ((1, 0), "max_bytes"),
        ((1, 1.5), "max_bytes"),
        ((1, None, 0), "max_weight"),
        ((1, None, float("inf")), "max_weight"),
        ((1, None, "3"), "max_weight"),
    ],
)
def test_limits_out_of_range_are_refused_by_name(arguments: tuple[Any, ...], field: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{field}: must be") as caught:
        Cutter(*arguments)
    assert caught.value.field == field


def test_numbers_that_python_refuses_to_print_are_refused_all_the_same() -> None:
    with pytest.raises(ConfigurationError, match=r"got -1\.000E\+5000"):
        Cutter(-(10**5000))
    with pytest.raises(ItemTooLargeError, match=r"weight 1\.000E\+5000"):
        Cutter(9, max_weight=2).add(1, 10**5000)


def test_sorted_groups_never_come_back() -> None:
    cutter = Cutter(2)
    for group in "aaabbc":
        cutter.add(1, group=group)
    assert (cutter.returned_groups, cutter.first_returned_group) == (0, None)


def test_a_group_that_comes_back_is_said_each_time() -> None:
    cutter = Cutter(9)
    for group in ["a", "b", "b", "a", "c", "b"]:
        cutter.add(1, group=group)
    assert (cutter.returned_groups, cutter.first_returned_group) == (2, "a")


def test_a_batch_that_is_full_is_no_return_of_its_group() -> None:
    cutter = Cutter(1)
    for _ in range(3):
        cutter.add(1, group="a")
    assert cutter.returned_groups == 0


def test_groups_beyond_unicode_are_told_apart() -> None:
    cutter = Cutter(9)
    for group in ["\ud800", None, "", "\ud800"]:
        cutter.add(1, group=group)
    assert cutter.first_returned_group == "\ud800"
    assert cutter.returned_groups == 1


def test_memory_stays_flat_however_many_groups_there_are() -> None:
    cutter = Cutter(9)

    def feed(first: int, last: int) -> int:
        for n in range(first, last):
            cutter.add(1, group=f"group {n}")
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = feed(0, REMEMBERED_GROUPS + 1)
        assert feed(REMEMBERED_GROUPS + 1, 6 * REMEMBERED_GROUPS) - before < 50_000
    finally:
        tracemalloc.stop()
    cutter.add(1, group="group 7")
    assert cutter.first_returned_group == "group 7"
