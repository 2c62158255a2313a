"""The arithmetic of jobs that ran again what earlier jobs left: what became of the first job's items in the end.

Jobs form a tree: each later job took, of one earlier job, the items that had ended in certain ways there. Two ways to
add them up agree: by counts, when no item was handed on twice and every item that was handed on was taken; item by
item, always.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.core.model import ItemOutcome
from orchestrator.core.report import ItemCounts

Labelled = tuple[str, ItemOutcome]
"""An item's key and how it ended."""


@dataclass(frozen=True, slots=True)
class Link:
    """One job of the tree.

    Args:
        counts: Of its items; None while it is not over: its items then count as they ended before it.
        only: How the items that it took had ended in the earlier job; empty for the first.
        total: How many it took.
        later: The jobs that took items of this one, in the order in which they did.
        earlier: Id of the job whose items it took; None for the first.
    """

    job_id: str
    counts: ItemCounts | None
    total: int
    only: frozenset[ItemOutcome] = frozenset()
    later: tuple[Link, ...] = ()
    earlier: str | None = None

    def walk(self) -> Iterator[Link]:
        """This job and all later ones, each before those that took items of it."""
        stack = [self]
        while stack:
            found = stack.pop()
            yield found
            stack.extend(reversed(found.later))


def in_the_end(first: Link) -> ItemCounts | None:
    """How the first job's items ended, by counts.

    Returns:
        Counts that add up to the first job's total; None where counts alone cannot tell: an item was handed on twice,
        or not all that were handed on were taken (`skip_succeeded_of`).
    """
    if first.counts is None:
        return None
    left = dict.fromkeys(ItemOutcome, 0)
    for job in first.walk():
        if job.counts is None:
            continue
        counts = by_outcome(job.counts)
        handed: set[ItemOutcome] = set()
        for later in job.later:
            if later.counts is None:
                continue
            some = {o for o in later.only if counts[o]}
            if some & handed or sum(counts[o] for o in some) != later.total:
                return None
            handed |= some
        for outcome, count in counts.items():
            if outcome not in handed:
                left[outcome] += count
    return total_of(left)


def item_by_item(
    outcomes: Iterable[Labelled], later: Sequence[tuple[frozenset[ItemOutcome], Iterable[Labelled]]]
) -> Iterator[Labelled]:
    """How each item of a job ended in the end, in its order; in constant memory.

    An item that several later jobs had succeeded when it did in any of them; else it ended as in the last of them.

    Args:
        outcomes: The job's own.
        later: For each later job: how the items that it took had ended here, and how those ended there in the end, in
            this job's order. Items that it left out are recognised by their key.
    """
    streams = [(only, _Peekable(ends)) for only, ends in later]
    for key, outcome in outcomes:
        ends = [end for only, stream in streams if outcome in only and (end := stream.take(key)) is not None]
        if ItemOutcome.SUCCEEDED in ends:
            yield key, ItemOutcome.SUCCEEDED
        else:
            yield key, ends[-1] if ends else outcome


class _Peekable:
    """A stream whose next item is given out only to who names its key."""

    def __init__(self, items: Iterable[Labelled]) -> None:
        self._items = iter(items)
        self._next = next(self._items, None)

    def take(self, key: str) -> ItemOutcome | None:
        if self._next is None or self._next[0] != key:
            return None
        found, self._next = self._next[1], next(self._items, None)
        return found


def by_outcome(counts: ItemCounts) -> Mapping[ItemOutcome, int]:
    """The four counts under their outcomes."""
    return {o: int(getattr(counts, o.value)) for o in ItemOutcome}


def total_of(counts: Mapping[ItemOutcome, int]) -> ItemCounts:
    """Counts under their outcomes as those of a report."""
    numbers = [counts.get(o, 0) for o in ItemOutcome]
    return ItemCounts(sum(numbers), *numbers)
