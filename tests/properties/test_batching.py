"""Cutting, for any collection and any limits."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.batching import Cutter, cut


@dataclass(frozen=True)
class Piece:
    """An item as the cutter sees it."""

    bytes: int
    weight: float
    group: str | None


@dataclass(frozen=True)
class Limits:
    batch_size: int
    max_bytes: int | None
    max_weight: float | None

    def allow(self, batch: list[Piece]) -> bool:
        return (
            len(batch) <= self.batch_size
            and (self.max_bytes is None or sum(p.bytes for p in batch) <= self.max_bytes)
            and (self.max_weight is None or sum(Decimal(str(p.weight)) for p in batch) <= Decimal(str(self.max_weight)))
            and len({p.group for p in batch}) <= 1
        )


weights = st.one_of(st.integers(0, 20), st.floats(0, 20), st.sampled_from([0.1, 0.2, 0.3]))
pieces = st.builds(Piece, st.integers(0, 20), weights, st.sampled_from([None, "", "a", "b"]))
limits = st.builds(
    Limits,
    st.integers(1, 8),
    st.none() | st.integers(20, 60),
    st.none() | st.integers(20, 60) | st.floats(20, 60),
)


def batches_of(items: list[Piece], limit: Limits) -> list[list[Piece]]:
    return list(
        cut(
            items,
            batch_size=limit.batch_size,
            max_bytes=limit.max_bytes,
            max_weight=limit.max_weight,
            size=lambda p: p.bytes,
            weight=lambda p: p.weight,
            group=lambda p: p.group,
        )
    )


@given(st.lists(pieces, max_size=60), limits)
def test_the_batches_joined_are_the_collection_in_its_order(items: list[Piece], limit: Limits) -> None:
    batches = batches_of(items, limit)
    assert [p for b in batches for p in b] == items
    assert all(batches)


@given(st.lists(pieces, max_size=60), limits)
def test_every_batch_keeps_every_limit(items: list[Piece], limit: Limits) -> None:
    assert all(limit.allow(b) for b in batches_of(items, limit))


@given(st.lists(pieces, max_size=60), limits)
def test_no_batch_could_have_taken_the_item_after_it(items: list[Piece], limit: Limits) -> None:
    batches = batches_of(items, limit)
    assert not any(limit.allow([*b, after[0]]) for b, after in pairwise(batches))


@given(st.lists(pieces, max_size=60), limits, st.integers(0, 60))
def test_what_comes_later_does_not_change_what_was_cut(items: list[Piece], limit: Limits, stop: int) -> None:
    whole = batches_of(items, limit)
    start = batches_of(items[:stop], limit)
    assert start[:-1] == whole[: len(start)][:-1]


@given(st.lists(st.sampled_from([None, "", "a", "b", "c"]), max_size=30))
def test_a_return_is_counted_exactly_when_a_group_was_there_before_another(groups: list[str | None]) -> None:
    cutter = Cutter(100)
    for group in groups:
        cutter.add(1, group=group)
    changes = [g for i, g in enumerate(groups) if i and g != groups[i - 1]]
    runs = groups[:1] + changes
    assert cutter.returned_groups == len(runs) - len(set(runs))
