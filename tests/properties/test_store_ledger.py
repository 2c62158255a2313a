"""The ledger under any order of what parents, children and given-up children do: each item once, for ever."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator.core.model import EndReason, ItemOutcome, Reading
from orchestrator.errors import StorageError
from orchestrator.store import (
    Carried,
    Counting,
    EndRecord,
    JobFolder,
    JobRecord,
    Ledger,
    OutcomeRecord,
    StageOptions,
    as_source,
    stage,
)

COUNT = 6
S, F, U, N = ItemOutcome.SUCCEEDED, ItemOutcome.FAILED, ItemOutcome.UNKNOWN, ItemOutcome.NOT_STARTED
_folders = itertools.count()


def new_job() -> JobFolder:
    folder = JobFolder(f"memory://ledgers/{next(_folders)}")
    staged = stage(as_source(range(COUNT)), folder, "n", StageOptions(batch_size=COUNT))
    folder.create_job(JobRecord("j", "n", "2025-01-01T00:00:00Z", {}, staged.total, staged.batches))
    return folder


class Child:
    """One attempt's process: it knows what it took over and did, and may live on after it was given up."""

    def __init__(self, folder: JobFolder, attempt: int) -> None:
        self.ledger = Ledger(folder, 0, attempt, COUNT)
        self.carried: Carried = self.ledger.open()
        self.done: dict[int, ItemOutcome] = {}
        self.begun: set[int] = set()
        self.ended = False

    def free(self) -> list[int]:
        return [i for i in range(COUNT) if i not in self.carried.outcomes and i not in self.done]


class Lives(RuleBasedStateMachine):
    """Attempts start, record, die or end; the parent closes them; given-up ones go on writing."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = new_job()
        self.children: list[Child | None] = []  # by attempt; None: it never came to life
        self.readings: dict[int, Reading] = {}
        self.begun: set[int] = set()  # items that had begun when the parent or a successor looked
        self.promised: dict[int, ItemOutcome] = {}  # what an attempt was told is done

    @precondition(lambda self: len(self.children) == len(self.readings) < 5)
    @rule(alive=st.booleans())
    def start(self, alive: bool) -> None:
        child = None
        self.begun.update(*(c.begun for c in self.children if c))
        if alive:
            child = Child(self.folder, len(self.children))
            for index, outcome in self.promised.items():
                assert child.carried.outcomes[index] is outcome
            self.promised.update(child.carried.outcomes)
        self.children.append(child)

    @precondition(lambda self: any(c and not c.ended and c.free() for c in self.children))
    @rule(data=st.data(), outcome=st.sampled_from([S, F]), begin_only=st.booleans())
    def work(self, data: st.DataObject, outcome: ItemOutcome, begin_only: bool) -> None:
        child = data.draw(st.sampled_from([c for c in self.children if c and not c.ended and c.free()]))
        index = data.draw(st.sampled_from(child.free()))
        child.begun.add(index)
        if not begin_only:
            kind = "E" if outcome is F else None
            assert child.ledger.record(OutcomeRecord(index, str(index), outcome, error_type=kind))
            child.done[index] = outcome

    @precondition(lambda self: any(c and not c.ended for c in self.children))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        child = data.draw(st.sampled_from([c for c in self.children if c and not c.ended]))
        counting = Counting()
        for index, outcome in {**child.carried.outcomes, **child.done}.items():
            counting.add(OutcomeRecord(index, str(index), outcome, error_type="E"))
        in_progress = tuple(sorted(child.begun - set(child.done)))
        child.ledger.end(EndRecord(EndReason.STOPPED, counting.counts(), in_progress))
        child.ended = True

    @precondition(lambda self: bool(self.children))
    @rule()
    def close(self) -> None:
        attempt = len(self.children) - 1
        last = self.children[attempt]
        if attempt not in self.readings and last:
            self.begun |= last.begun
        reading = self.folder.close_attempt(0, COUNT, attempt)
        counts = reading.counts
        assert counts.succeeded + counts.failed + reading.unknown + reading.not_started == COUNT
        assert self.readings.setdefault(attempt, reading) == reading

    @invariant()
    def each_item_has_one_outcome_and_none_that_was_promised_changes(self) -> None:
        outcomes = {record.index: record.outcome for record in self.folder.outcomes()}
        assert sorted(outcomes) == list(range(COUNT))
        for index, outcome in self.promised.items():
            assert outcomes[index] is outcome
        current = len(self.children) - 1
        if current in self.readings:  # it is closed: report and reading agree until a new attempt starts
            reading, counted = self.readings[current], Counter(outcomes.values())
            assert (counted[S], counted[F]) == (reading.counts.succeeded, reading.counts.failed)
            assert (counted[U], counted[N]) == (reading.unknown, reading.not_started)

    @invariant()
    def an_item_that_may_have_begun_is_never_called_not_started(self) -> None:
        if len(self.children) - 1 in self.readings:
            outcomes = {record.index: record.outcome for record in self.folder.outcomes()}
            assert not [i for i in self.begun if outcomes[i] is N]

    def teardown(self) -> None:
        self.folder.delete()


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, COUNT - 1), st.sampled_from([S, F])), max_size=6, unique_by=lambda pair: pair[0]),
    st.sampled_from(["a0.jsonl", "a0.end", "a0.revoked"]),
    st.integers(0, 400),
    st.binary(max_size=8),
    st.integers(0, 8),
)
def test_a_ledger_changed_anywhere_is_read_or_refused_and_still_adds_up(
    records: list[tuple[int, ItemOutcome]], name: str, at: int, inserted: bytes, removed: int
) -> None:
    folder = new_job()
    ledger = Ledger(folder, 0, 0, COUNT)
    ledger.open()
    for index, outcome in records:
        ledger.record(OutcomeRecord(index, str(index), outcome))
    if name == "a0.revoked":
        folder.close_attempt(0, COUNT, 0)
    else:
        counting = Counting()
        for index, outcome in records:
            counting.add(OutcomeRecord(index, str(index), outcome))
        ledger.end(EndRecord(EndReason.STOPPED, counting.counts()))
    data = folder.store.get(f"b/0/{name}") or b""
    place = at % (len(data) + 1)
    folder.store.put(f"b/0/{name}", data[:place] + inserted + data[place + removed :])
    try:
        reading = folder.close_attempt(0, COUNT, 0)
        outcomes: Mapping[ItemOutcome, int] = Counter(record.outcome for record in folder.outcomes())
    except StorageError:
        return
    finally:
        folder.delete()
    counts = reading.counts
    assert counts.succeeded + counts.failed + reading.unknown + reading.not_started == COUNT
    assert sum(outcomes.values()) == COUNT
