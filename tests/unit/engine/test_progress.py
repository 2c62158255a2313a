"""Progress survives the trip through an artifact, whatever its texts are, and garbage is not believed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.model import Counts, Failure, Progress
from orchestrator.engine import progress as progress_artifact

counts = st.integers(0, 10**9)
texts = st.text(max_size=2000)


@st.composite
def progresses(draw: st.DrawFn) -> Progress:
    failed = draw(counts)
    return Progress(
        batch=draw(counts),
        attempt=draw(counts),
        sequence=draw(counts),
        counts=Counts(
            succeeded=draw(counts),
            failed=failed,
            trailing_failures=draw(st.integers(0, failed)),
            errors=draw(st.dictionaries(texts, st.integers(1, 10**9), max_size=15)),
            first_failure=draw(st.none() | st.builds(Failure, counts, texts, texts, texts)),
        ),
    )


@given(progresses(), texts)
def test_numbers_come_back_and_no_value_is_longer_than_the_server_keeps(news: Progress, job: str) -> None:
    total = news.counts.settled
    percent, metadata = progress_artifact.encode(news, total, job)
    assert 0 <= percent <= 100
    assert all(isinstance(value, str) and len(value) <= 500 for value in metadata.values())
    json.dumps(metadata, ensure_ascii=False).encode("utf-8")  # no lone surrogates
    assert all("\x00" not in value for value in metadata.values())
    back = progress_artifact.decode(metadata)
    assert back is not None
    assert (back.batch, back.attempt, back.sequence) == (news.batch, news.attempt, news.sequence)
    assert (back.counts.succeeded, back.counts.failed, back.counts.trailing_failures) == (
        news.counts.succeeded,
        news.counts.failed,
        news.counts.trailing_failures,
    )
    assert (back.counts.first_failure is None) == (news.counts.first_failure is None)
    if news.counts.first_failure is not None and back.counts.first_failure is not None:
        assert back.counts.first_failure.index == news.counts.first_failure.index


def test_short_texts_come_back_whole() -> None:
    counts = Counts(
        5, 3, 1, {"ValueError": 2, "OSError": 1}, Failure(7, "img-7", "ValueError", 'bad "quotes" and ünïcode')
    )
    news = Progress(batch=3, attempt=1, sequence=9, counts=counts)
    assert progress_artifact.decode(progress_artifact.encode(news, 10, "job")[1]) == news


@given(
    st.dictionaries(
        st.sampled_from(["batch", "attempt", "sequence", "succeeded", "failed", "errors"]),
        texts | st.integers() | st.none(),
    )
)
def test_garbage_is_refused_and_never_raises(metadata: dict[str, object]) -> None:
    back = progress_artifact.decode(metadata)
    assert back is None or min(back.counts.succeeded, back.counts.failed, back.sequence) >= 0


GOOD = {"batch": "0", "attempt": "0", "sequence": "1", "succeeded": "2", "failed": "1", "total": "3"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"succeeded": "-1"},
        {"succeeded": "3"},  # more than the batch holds
        {"failed": "1e3"},
        {"failed": "٣"},
        {"sequence": None},
        {"trailing_failures": "2"},  # more than failed
        {"batch": "9" * 400},
    ],
)
def test_numbers_that_cannot_be_right_are_refused(wrong: dict[str, object]) -> None:
    assert progress_artifact.decode(GOOD) is not None
    assert progress_artifact.decode({**GOOD, **wrong}) is None


@pytest.mark.parametrize("errors", ["[", '{"a": -1}', '{"a": "b"}', "[" * 900, "1", '{"a": 1e400}'])
def test_unreadable_error_texts_are_left_out(errors: str) -> None:
    back = progress_artifact.decode({**GOOD, "errors": errors, "first_failure": errors})
    assert back is not None
    assert not back.counts.errors
    assert back.counts.first_failure is None


def test_no_metadata_is_no_news() -> None:
    assert progress_artifact.decode(None) is None
    assert progress_artifact.decode([]) is None
