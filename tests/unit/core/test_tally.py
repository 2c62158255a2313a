"""The running counts: what replaces what, and the numbers that depend on the order of news."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.model import BatchOutcome, Counts, Failure
from orchestrator.core.tally import Tally


def counts(succeeded: int, failed: int = 0, trailing: int | None = None, **errors: int) -> Counts:
    return Counts(succeeded, failed, failed if trailing is None else trailing, errors)


def failure(kind: str, index: int = 0) -> Failure:
    return Failure(index, str(index), kind, f"{kind} of item {index}")


# ---------------------------------------------------------------- totals


def test_newer_counts_of_a_batch_replace_the_older_ones():
    tally = Tally(10)
    tally.update(None, counts(2, 1))
    tally.update(counts(2, 1), counts(5, 2))
    assert (tally.succeeded, tally.failed, tally.settled) == (5, 2, 7)


def test_counts_that_went_back_make_the_totals_smaller_again():
    """A child died before its last outcomes were written: the ledger knows less than the news did."""
    tally = Tally(10)
    tally.update(None, counts(4, 3, ValueError=3))
    tally.update(counts(4, 3, ValueError=3), counts(3, 1, ValueError=1))
    assert (tally.succeeded, tally.failed) == (3, 1)
    assert tally.errors("ValueError") == 1


def test_items_that_nobody_knows_of_are_settled_and_items_not_started_are_not():
    tally = Tally(10)
    tally.update(None, counts(4))
    tally.settle(BatchOutcome.CRASHED, unknown=2, not_started=3)
    assert tally.number("settled") == 6
    assert tally.number("unknown") == 2
    assert tally.number("not_started") == 3


def test_an_error_type_that_is_not_known_has_no_failures():
    assert Tally(1).errors("ValueError") == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_the_totals_are_the_newest_counts_of_each_batch_whatever_the_order(news):
    tally, newest = Tally(1000), {}
    for batch, succeeded, failed in news:
        new = counts(succeeded, failed, **({"E": failed} if failed else {}))
        tally.update(newest.get(batch), new)
        newest[batch] = new
    assert tally.succeeded == sum(c.succeeded for c in newest.values())
    assert tally.failed == sum(c.failed for c in newest.values())
    assert tally.errors("E") == tally.failed


# ---------------------------------------------------------------- names


def test_a_rate_of_nothing_has_no_value():
    tally = Tally(10)
    assert tally.number("failed_rate") is None
    tally.update(None, counts(3, 1))
    assert tally.number("failed_rate") == 0.25


def test_batches_are_counted_by_how_they_ended():
    tally = Tally(10)
    for outcome in BatchOutcome:
        tally.settle(outcome, unknown=0, not_started=0)
    tally.settle(BatchOutcome.CRASHED, unknown=0, not_started=0)
    assert tally.number("completed_batches") == 1
    assert tally.number("failed_batches") == 1
    assert tally.number("crashed_batches") == 2
    assert tally.number("settled_batches") == 7


def test_failed_and_crashed_batches_in_a_row_are_counted_until_one_completes():
    tally = Tally(10)
    ended = [BatchOutcome.FAILED, BatchOutcome.CRASHED, BatchOutcome.CANCELLED, BatchOutcome.FAILED]
    for outcome in ended:
        tally.settle(outcome, unknown=0, not_started=0)
    assert tally.number("consecutive_failed_batches") == 3
    tally.settle(BatchOutcome.COMPLETED, unknown=0, not_started=0)
    assert tally.number("consecutive_failed_batches") == 0


def test_time_is_elapsed_since_the_start_and_stalled_since_the_last_progress():
    tally = Tally(10)
    tally.started = tally.last_progress = 5.0
    tally.now = 20.0
    assert (tally.number("elapsed"), tally.number("stalled")) == (15.0, 15.0)
    tally.update(None, counts(1))
    tally.now = 22.0
    assert (tally.number("elapsed"), tally.number("stalled")) == (17.0, 2.0)


def test_news_without_growth_is_no_progress():
    tally = Tally(10)
    tally.update(None, counts(3))
    tally.now = 60.0
    tally.update(counts(3), counts(2))
    assert tally.number("stalled") == 60.0


# ---------------------------------------------------------------- failures in a row


def test_failures_in_a_row_add_up_over_batches_until_one_succeeds():
    tally = Tally(100)
    tally.update(None, counts(0, 3))
    tally.update(None, counts(0, 2))
    assert tally.consecutive_failed == 5
    tally.update(None, counts(4, 6, trailing=1))
    assert tally.consecutive_failed == 1
    tally.update(counts(4, 6, trailing=1), counts(4, 8, trailing=3))
    assert tally.consecutive_failed == 3


def test_news_told_twice_adds_no_failure_in_a_row():
    tally = Tally(100)
    tally.update(None, counts(0, 3))
    tally.update(counts(0, 3), counts(0, 3))
    assert tally.consecutive_failed == 3


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.booleans(), max_size=6)), max_size=20))
def test_failures_in_a_row_follow_the_order_of_news(news):
    """The model: each piece of news is the batch's items since the last piece, as a unit, its failures last."""
    tally, known = Tally(1000), {}
    expected = 0
    for batch, items in news:
        before = known.get(batch, [])
        now = [*before, *items]
        known[batch] = now
        trailing = next((n for n, ok in enumerate(reversed(now)) if ok), len(now))
        tally.update(
            counts(sum(before), len(before) - sum(before)) if before else None,
            counts(sum(now), len(now) - sum(now), trailing),
        )
        if any(items):
            expected = next(n for n, ok in enumerate(reversed(items)) if ok)
        else:
            expected += len(items)
        assert tally.consecutive_failed == expected


# ---------------------------------------------------------------- the newest n items


def test_the_rate_of_the_newest_items_has_no_value_before_there_are_so_many():
    tally = Tally(100, windows=frozenset({10}))
    tally.update(None, counts(4, 5))
    assert tally.recent_failed_rate(10) is None
    tally.update(None, counts(1))
    assert tally.recent_failed_rate(10) == 0.5


def test_the_piece_of_news_that_reaches_into_the_window_counts_in_proportion():
    tally = Tally(100, windows=frozenset({10}))
    tally.update(None, counts(10, 10))
    tally.update(None, counts(5))
    assert tally.recent_failed_rate(10) == 0.25


def test_a_long_piece_of_news_fills_the_window_to_the_last_item():
    """49 * (1 / 49) is less than 1 in floating point: the window must be full all the same."""
    tally = Tally(1000, windows=frozenset({1, 50}))
    tally.update(None, counts(0, 49))
    assert tally.recent_failed_rate(1) == 1.0


def test_only_as_much_news_is_kept_as_the_longest_window_needs():
    tally = Tally(1_000_000, windows=frozenset({20, 5}))
    for _ in range(10_000):
        tally.update(None, counts(1, 1))
    assert len(tally._recent) <= 11
    assert tally.recent_failed_rate(20) == 0.5


def test_without_a_window_no_news_is_kept_and_a_window_can_come_later():
    tally = Tally(1000)
    tally.update(None, counts(0, 50))
    assert not tally._recent
    tally.remember_at_least(frozenset({10}))
    tally.update(None, counts(10))
    assert tally.recent_failed_rate(10) == 0.0


def brute_force(pieces: list[tuple[int, int]], n: int) -> float | None:
    """Item by item: each piece spread evenly over its items, newest first."""
    shares = [bad / settled for settled, bad in reversed(pieces) for _ in range(settled)]
    return sum(shares[:n]) / n if len(shares) >= n else None


pieces_of_news = st.lists(
    st.tuples(st.integers(1, 60), st.floats(0, 1)).map(lambda p: (p[0], round(p[0] * p[1]))), max_size=30
)


@settings(max_examples=300)
@given(pieces_of_news, st.sets(st.integers(1, 100), min_size=1, max_size=4))
def test_the_rate_of_the_newest_items_is_that_of_a_list_of_all_items(pieces, windows):
    tally = Tally(100_000, windows=frozenset(windows))
    for number, (settled, bad) in enumerate(pieces):
        tally.update(None, counts(settled - bad, bad))
        for n in windows:
            expected = brute_force(pieces[: number + 1], n)
            found = tally.recent_failed_rate(n)
            assert (found is None) == (expected is None)
            if found is not None and expected is not None:
                assert abs(found - expected) < 1e-9
                assert 0 <= found <= 1


# ---------------------------------------------------------------- examples


def test_the_first_failure_stays_the_first():
    tally = Tally(10)
    tally.update(None, Counts(0, 1, 1, {"A": 1}, failure("A", 7)))
    tally.update(None, Counts(0, 1, 1, {"B": 1}, failure("B", 2)))
    assert tally.first_failure == failure("A", 7)


def test_examples_are_kept_one_per_error_type_and_not_without_bound():
    tally = Tally(10_000)
    for index in range(200):
        tally.update(None, Counts(0, 1, 1, {f"E{index}": 1}, failure(f"E{index}", index)))
    tally.update(None, Counts(0, 1, 1, {"E0": 1}, failure("E0", 999)))
    assert len(tally.examples) == 50
    assert tally.examples["E0"].index == 0
