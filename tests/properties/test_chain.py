"""Random trees of retries: however jobs end and run again, the four counts add up to the first job's items."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.chain import Labelled, Link, in_the_end, item_by_item, total_of
from orchestrator.core.model import ItemOutcome

OUTCOMES = st.sampled_from(list(ItemOutcome))
LEFT = [o for o in ItemOutcome if o is not ItemOutcome.SUCCEEDED]


class Job:
    """A job of the tree, item by item; items know the first job's index of theirs."""

    def __init__(self, origins: list[int], keys: list[str], outcomes: list[ItemOutcome], only: frozenset[ItemOutcome]):
        self.origins, self.keys, self.outcomes, self.only = origins, keys, outcomes, only
        self.later: list[Job] = []
        self.over = True

    def link(self, name: str = "0") -> Link:
        later = tuple(job.link(f"{name}.{n}") for n, job in enumerate(self.later))
        counts = total_of(Counter(self.outcomes)) if self.over else None
        return Link(name, counts, len(self.origins), self.only, later)

    def ends(self) -> list[Labelled]:
        own = list(zip(self.keys, self.outcomes, strict=True))
        return list(item_by_item(own, [(job.only, job.ends()) for job in self.later if job.over]))

    def truth(self) -> dict[int, ItemOutcome]:
        """How each item ended in the end, by its origin: written down once more, plainly."""
        found = dict(zip(self.origins, self.outcomes, strict=True))
        last: dict[int, list[ItemOutcome]] = {}
        for job in self.later:
            if job.over:
                for origin, outcome in job.truth().items():
                    last.setdefault(origin, []).append(outcome)
        for origin, ends in last.items():
            found[origin] = ItemOutcome.SUCCEEDED if ItemOutcome.SUCCEEDED in ends else ends[-1]
        return found


@st.composite
def trees(draw: st.DrawFn, *, again: bool = False, skips: bool = False) -> Job:
    """A first job and retries of retries.

    Args:
        again: The same items may be handed on twice.
        skips: A retry may leave items out by their key.
    """
    size = draw(st.integers(0, 12))
    keys = [draw(st.sampled_from("abcd")) if draw(st.booleans()) else str(n) for n in range(size)]
    first = Job(list(range(size)), keys, [draw(OUTCOMES) for _ in range(size)], frozenset())
    jobs = [first]
    for _ in range(draw(st.integers(0, 5))):
        earlier = draw(st.sampled_from([job for job in jobs if job.over]))
        taken = frozenset[ItemOutcome]().union(*(job.only for job in earlier.later))
        free = [o for o in (ItemOutcome if again else LEFT) if again or o not in taken]
        if not free:
            continue
        only = frozenset(draw(st.lists(st.sampled_from(free), min_size=1)))
        left_out = draw(st.frozensets(st.sampled_from("abcd"))) if skips else frozenset()
        chosen = [n for n, o in enumerate(earlier.outcomes) if o in only and earlier.keys[n] not in left_out]
        later = Job(
            [earlier.origins[n] for n in chosen],
            [earlier.keys[n] for n in chosen],
            [draw(OUTCOMES) for _ in chosen],
            only,
        )
        later.over = draw(st.integers(0, 4)) > 0
        earlier.later.append(later)
        jobs.append(later)
    return first


def check(first: Job) -> None:
    ends = first.ends()
    truth = first.truth()
    assert ends == [(key, truth[origin]) for origin, key in enumerate(first.keys)]
    expected = total_of(Counter(truth.values()))
    assert expected.total == len(first.origins)
    by_counts = in_the_end(first.link())
    if by_counts is not None:
        assert by_counts == expected


@given(trees())
def test_counts_alone_account_for_every_item_of_the_first_job(first: Job):
    check(first)
    assert in_the_end(first.link()) is not None


@given(trees(again=True))
def test_items_that_were_handed_on_twice_are_counted_once(first: Job):
    check(first)


@given(trees(again=True, skips=True))
def test_items_that_a_retry_left_out_stay_as_they_were(first: Job):
    check(first)


def test_a_first_job_that_is_not_over_cannot_be_summed_up():
    assert in_the_end(Link("a", None, 3)) is None
