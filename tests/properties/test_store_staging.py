"""Whatever is staged comes back as it was, whatever the limits; and every cut-up file is read or refused."""

from __future__ import annotations

import io
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import SourceError
from orchestrator.store import JobFolder, JobRecord, StageOptions, as_source, decode_json, encode_json, stage
from orchestrator.store.formats import READERS

_folders = itertools.count()

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(json_values)
def test_a_value_read_back_is_the_value_written_on_one_line(value: object) -> None:
    data = encode_json(value)
    assert b"\n" not in data
    assert decode_json(data) == value


@settings(max_examples=150)
@given(
    st.lists(json_values, max_size=30),
    st.integers(1, 12),
    st.none() | st.integers(200, 400),
)
def test_staged_items_come_back_in_order_whatever_the_cut(
    items: list[object], batch_size: int, max_bytes: int | None
) -> None:
    folder = JobFolder(f"memory://properties/{next(_folders)}")
    options = StageOptions(batch_size=batch_size, max_bytes=max_bytes)
    if max_bytes is not None and any(len(encode_json(item)) > max_bytes for item in items):
        with pytest.raises(SourceError, match="above max_bytes"):
            stage(as_source(items), folder, "n", options)
        assert folder.store.list() == []
        return
    staged = stage(as_source(items), folder, "n", options)
    folder.create_job(JobRecord("j", "n", "2025-01-01T00:00:00Z", {}, staged.total, staged.batches))
    batches = list(folder.batches())
    assert [folder.batch(n) for n in range(staged.batches)] == batches
    read = [item for batch in batches for item in folder.read_items(batch)]
    assert [item.value for item in read] == items
    assert [item.index for item in read] == list(range(len(items)))
    assert all(1 <= batch.count <= batch_size for batch in batches)
    assert staged.total == sum(batch.count for batch in batches) == len(items)
    folder.delete()


@settings(max_examples=150)
@given(st.lists(json_values, max_size=20), st.sampled_from(["json", "jsonl"]), st.integers(0, 40))
def test_files_are_read_as_json_reads_them_whatever_their_white_space(
    items: list[object], kind: str, indent: int
) -> None:
    if kind == "json":
        text = json.dumps(items, indent=indent % 4 or None, ensure_ascii=bool(indent % 2))
    else:
        text = "".join(json.dumps(item) + "\n" * (1 + indent % 3) for item in items)
    data = text.encode("utf-8", "surrogatepass")
    assert [row.value for row in READERS[kind](io.BytesIO(data), "a file")] == items


@settings(max_examples=300)
@given(
    st.sampled_from(["json", "jsonl", "csv", "text"]),
    st.binary(max_size=60) | st.text('[]{}",:1e9\n aN', max_size=30).map(str.encode),
)
def test_any_bytes_at_all_are_items_or_an_error_that_names_the_file(kind: str, data: bytes) -> None:
    said = "a file"
    try:
        assert all(row.line is not None for row in READERS[kind](io.BytesIO(data), "a file"))
    except SourceError as e:
        said = str(e)
    assert "a file" in said
    assert "\n" not in said
