"""The values everything is written in: what can be built, and their JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.model import Batch, BatchReference, Counts, Failure, Phase, idempotency_key

FAILURE = Failure(3, "k3", "ValueError", "no")


def test_four_phases_are_final():
    assert {p for p in Phase if p.is_terminal} == {Phase.COMPLETED, Phase.FAILED, Phase.CRASHED, Phase.CANCELLED}


def test_a_key_names_job_nonce_batch_and_attempt():
    assert idempotency_key("j", "n", 3, 1) == "j/n/3/1"


def test_a_reference_comes_back_from_its_json_and_stays_small():
    batch = Batch(7, 700, 100, "items/0123456789abcdef/part-00012.jsonl", 10**12, 10**9, "f" * 64, "group")
    reference = BatchReference.of(
        job="j" * 80, folder="s3://bucket/" + "p" * 60, nonce="n" * 16, batches=10**6, attempt=2, batch=batch
    )
    text = json.dumps(reference.to_json())
    assert BatchReference(**json.loads(text)) == reference
    assert len(text) < 700


def test_settled_items_are_those_that_succeeded_or_failed():
    assert Counts(3, 2).settled == 5


counts = st.builds(
    Counts,
    succeeded=st.integers(0, 10**9),
    failed=st.integers(0, 10**9),
    trailing_failures=st.integers(0, 10**9),
    errors=st.dictionaries(st.text(max_size=20), st.integers(0, 10**6), max_size=10),
    first_failure=st.none() | st.builds(Failure, st.integers(0), st.text(), st.text(), st.text()),
)


@given(counts)
def test_counts_come_back_from_their_json(of):
    assert Counts.from_json(json.loads(json.dumps(of.to_json()))) == of


def test_fields_that_are_missing_count_nothing():
    assert Counts.from_json({}) == Counts()
    assert Counts.from_json({"errors": None, "first_failure": None}) == Counts()


@pytest.mark.parametrize(
    "data",
    [
        {"succeeded": -1},
        {"failed": 1.5},
        {"failed": "3"},
        {"succeeded": True},
        {"trailing_failures": None},
        {"errors": ["ValueError"]},
        {"errors": {"ValueError": "many"}},
        {"errors": {"ValueError": None}},
        {"first_failure": {"index": 1}},
        {"first_failure": {"index": None, "key": "k", "type": "T", "text": "t"}},
        {"first_failure": {"index": "x", "key": "k", "type": "T", "text": "t"}},
        {"first_failure": "an item"},
    ],
    ids=str,
)
def test_counts_that_cannot_be_are_refused(data):
    with pytest.raises(ValueError):
        Counts.from_json(data)
