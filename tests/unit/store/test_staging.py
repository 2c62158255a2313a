"""Staging: what comes in is what the batches hold; what no batch can hold is refused and leaves nothing."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.model import BatchReference, ItemOutcome
from orchestrator.errors import ConfigurationError, JobNotFoundError, SourceError, StoreUnavailableError
from orchestrator.store import JobFolder, JobRecord, Staged, StageOptions, as_source, job_folder_url, layout, stage
from orchestrator.store.local import LocalStore
from orchestrator.store.sources import parse_source


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder(job_folder_url(str(tmp_path / "jobs"), "j"))


def staged(folder: JobFolder, items: Any, options: StageOptions | None = None) -> Staged:
    result = stage(as_source(items), folder, "nonce", options or StageOptions(batch_size=2))
    folder.create_job(JobRecord("j", "nonce", "2025-01-01T00:00:00Z", {}, result.total, result.batches))
    return result


def batches(folder: JobFolder) -> list[list[Any]]:
    return [[item.value for item in folder.read_items(batch)] for batch in folder.batches()]


def keys(folder: JobFolder) -> list[str]:
    return [item.key for batch in folder.batches() for item in folder.read_items(batch)]


def test_items_are_cut_by_count_and_keyed_by_index(folder: JobFolder) -> None:
    result = staged(folder, ["a", None, {"é": [1.5, True]}])
    assert (result.total, result.batches, result.skipped, result.warnings) == (3, 2, 0, ())
    assert batches(folder) == [["a", None], [{"é": [1.5, True]}]]
    assert keys(folder) == ["0", "1", "2"]


def test_an_empty_collection_is_a_job_without_batches(folder: JobFolder) -> None:
    assert staged(folder, []).batches == 0
    assert list(folder.batches()) == []
    assert list(folder.outcomes()) == []


def test_select_passes_one_field_on_and_the_other_fields_label_it(folder: JobFolder) -> None:
    rows = [{"id": n, "path": f"p{n}", "kind": kind, "mb": str(n)} for n, kind in enumerate("aabb")]
    options = StageOptions(100, select="path", key="id", group_by="kind", weight="mb", max_weight=4)
    staged(folder, rows, options)
    assert batches(folder) == [["p0", "p1"], ["p2"], ["p3"]]
    assert keys(folder) == ["0", "1", "2", "3"]
    assert [batch.group for batch in folder.batches()] == ["a", "b", "b"]


def test_bytes_bound_a_batch(folder: JobFolder) -> None:
    staged(folder, ["x" * 8] * 5, StageOptions(batch_size=100, max_bytes=25))
    assert [len(batch) for batch in batches(folder)] == [2, 2, 1]


def test_unsorted_groups_are_said(folder: JobFolder) -> None:
    result = staged(folder, [{"g": g} for g in "aba"], StageOptions(group_by="g"))
    assert result.batches == 3
    assert "not sorted by g" in result.warnings[0]


def test_the_same_items_have_the_same_hash_and_others_another(folder: JobFolder, tmp_path: Path) -> None:
    first = stage(as_source([1, 2]), folder, "one", StageOptions())
    again = stage(as_source(iter([1, 2])), folder, "two", StageOptions())
    other = stage(as_source([1, 3]), folder, "three", StageOptions())
    assert first.hash == again.hash != other.hash


def test_a_reference_reads_the_same_items_as_its_batch(folder: JobFolder) -> None:
    staged(folder, list("abcde"))
    for batch in folder.batches():
        reference = BatchReference.of(job="j", folder=folder.url, nonce="nonce", batches=3, attempt=0, batch=batch)
        assert JobFolder(reference.folder).read_items(reference) == folder.read_items(batch)


def test_parts_and_indexes_are_closed_as_they_fill(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "PART_BYTES", 64)
    monkeypatch.setattr(layout, "INDEX_BATCHES", 3)
    result = staged(folder, [f"item-{n}" for n in range(40)])
    assert result.parts > 5
    assert [v for batch in batches(folder) for v in batch] == [f"item-{n}" for n in range(40)]
    assert [folder.batch(n).start for n in (0, 2, 3, 19)] == [0, 4, 6, 38]
    sizes = [e.size for e in folder.store.list("items/nonce/") if "part" in e.name]
    assert sum(sizes) == result.bytes


def test_half_of_a_surrogate_pair_survives(folder: JobFolder) -> None:
    staged(folder, ["\ud800", "\u2028"])
    assert batches(folder) == [["\ud800", "\u2028"]]


def test_progress_is_told(folder: JobFolder) -> None:
    told: list[tuple[int, int]] = []
    stage(as_source(range(25_000)), folder, "n", StageOptions(), on_progress=lambda *at: told.append(at))
    assert [items for items, _ in told] == [10_000, 20_000, 25_000]


@pytest.mark.parametrize(
    ("items", "options", "line", "said"),
    [
        ([1, {2, 3}], {}, 2, "a set is not JSON"),
        ([b"x"], {}, 1, "a bytes is not JSON"),
        ([{"a": {"b": [1, date(2025, 1, 1)]}}], {}, 1, r"at a\.b\[1\]: a date is not JSON"),
        ([1, float("nan")], {}, 2, "nan is not JSON; use null"),
        ([[float("inf")]], {}, 1, r"at \[0\]: inf is not JSON"),
        ([{1: 2}], {}, 1, "the key 1 is an int, and JSON has text keys only"),
        ([Decimal(1)], {}, 1, "a Decimal is not JSON"),
        (["x" * 100], {"max_bytes": 50}, 1, "above max_bytes=50"),
        ([{"w": 9}], {"weight": "w", "max_weight": 5}, 1, "above max_weight=5"),
        ([{"w": "heavy"}], {"weight": "w"}, 1, "must be a finite number >= 0, got 'heavy'"),
        ([{"w": -1}], {"weight": "w"}, 1, "finite number >= 0"),
        ([{"w": True}], {"weight": "w"}, 1, "finite number >= 0"),
        ([{"w": "nan"}], {"weight": "w"}, 1, "finite number >= 0"),
        ([{"a": 1}], {"key": "id"}, 1, "has no such field; it has 'a'"),
        ([3], {"key": "id"}, 1, "needs items that are mappings, this one is of type int"),
        ([{"a": 1}, {}], {"select": "a"}, 2, "has no such field; it has none"),
        ([{"id": None}], {"key": "id"}, 1, "must be a text or a number, not NoneType"),
        ([{"id": "x" * 1001}], {"key": "id"}, 1, "at most 1,000"),
        ([{"g": []}], {"group_by": "g"}, 1, "must be a text or a number, not list"),
        ([{"id": 1}, {"id": 2}, {"id": "1"}], {"key": "id", "unique_keys": True}, 3, "the key '1' came before"),
    ],
)
def test_what_no_batch_can_hold_is_refused_with_its_line_and_leaves_nothing(
    folder: JobFolder, items: list[Any], options: dict[str, Any], line: int, said: str
) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        stage(as_source(items), folder, "nonce", StageOptions(**options))
    assert caught.value.line == line
    assert folder.store.list() == []


def test_a_deeply_nested_item_is_refused(folder: JobFolder) -> None:
    item: list[Any] = []
    for _ in range(100_000):
        item = [item]
    with pytest.raises(SourceError, match="nested too deeply"):
        stage(as_source([item]), folder, "nonce")
    while item:
        item = item.pop()  # by hand: the interpreter would free it recursively


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"max_weight": 1.0}, "max_weight"),
        ({"skip_succeeded_of": "x"}, None),
    ],
)
def test_options_out_of_range_are_refused(folder: JobFolder, options: dict[str, Any], field: str | None) -> None:
    with pytest.raises(ConfigurationError) as caught:
        stage(as_source([1]), folder, "nonce", StageOptions(**options))
    assert field is None or caught.value.field == field
    assert folder.store.list() == []


def test_what_succeeded_in_an_earlier_job_is_left_out_by_key(tmp_path: Path, folder: JobFolder) -> None:
    earlier = JobFolder(job_folder_url(str(tmp_path / "jobs"), "earlier"))
    result = stage(as_source([{"id": n} for n in range(4)]), earlier, "n", StageOptions(2, key="id"))
    earlier.create_job(JobRecord("earlier", "n", "2025-01-01T00:00:00Z", {}, result.total, result.batches))
    earlier.close_by_value(0, 2, 0, ItemOutcome.SUCCEEDED)
    earlier.close_by_value(1, 2, 0, ItemOutcome.FAILED)
    options = StageOptions(100, key="id", skip_succeeded_of="earlier")
    result = staged(folder, [{"id": n} for n in (5, 1, 2, 0)], options)
    assert (result.total, result.skipped) == (2, 2)
    assert "2 items are left out: they succeeded in job earlier" in result.warnings[0]
    assert keys(folder) == ["5", "2"]


def test_what_succeeded_in_any_job_of_a_series_is_left_out(tmp_path: Path, folder: JobFolder) -> None:
    root = str(tmp_path / "jobs")
    for name, ids, created in (("night-2", (2, 3), "2025-01-02"), ("night-1", (0, 1), "2025-01-01"), ("day", (5,), "")):
        earlier = JobFolder(job_folder_url(root, name))
        result = stage(as_source([{"id": n} for n in ids]), earlier, "n", StageOptions(1, key="id"))
        earlier.create_job(JobRecord(name, "n", f"{created}T00:00:00Z", {}, result.total, result.batches))
        for batch in range(result.batches):
            earlier.close_by_value(batch, 1, 0, ItemOutcome.FAILED if batch else ItemOutcome.SUCCEEDED)
    (tmp_path / "jobs" / "night-half-staged").mkdir()
    options = StageOptions(100, key="id", skip_succeeded_of="night-*")
    result = staged(folder, [{"id": n} for n in range(6)], options)
    assert keys(folder) == ["1", "3", "4", "5"]
    assert "2 items are left out: they succeeded in 2 jobs night-*" in result.warnings[0]


def test_a_series_without_a_job_yet_leaves_nothing_out_and_says_so(folder: JobFolder) -> None:
    result = staged(folder, [{"id": 1}], StageOptions(100, key="id", skip_succeeded_of="night-*"))
    assert (result.total, result.warnings) == (1, ("Nothing is left out: there is no job night-* yet.",))


@pytest.mark.parametrize("pattern", ["*", "../*", "a/*", "a*" * 50])
def test_a_pattern_that_names_no_series_is_refused(folder: JobFolder, pattern: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        staged(folder, [{"id": 1}], StageOptions(100, key="id", skip_succeeded_of=pattern))
    assert caught.value.field == "skip_succeeded_of"
    with pytest.raises(SourceError):
        parse_source(f"results:{pattern}", storage=folder.url)


def test_skipping_needs_keys_and_a_job(tmp_path: Path, folder: JobFolder) -> None:
    with pytest.raises(JobNotFoundError):
        stage(as_source([1]), folder, "n", StageOptions(skip_succeeded_of="nowhere"))
    other = JobFolder(job_folder_url(str(tmp_path / "jobs"), "other"))
    other.create_job(JobRecord("other", "n", "2025-01-01T00:00:00Z", {}, 0, 0))
    with pytest.raises(ConfigurationError, match="skip_succeeded_of: needs key"):
        stage(as_source([1]), folder, "n", StageOptions(skip_succeeded_of="other"))


def test_storage_that_fails_half_way_is_an_error_of_storage(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "PART_BYTES", 10)
    puts = 0

    class Full(LocalStore):
        def put(self, name: str, data: bytes) -> None:
            nonlocal puts
            puts += 1
            if puts > 2:
                raise StoreUnavailableError("cannot write: No space left on device")
            super().put(name, data)

    full = JobFolder(Full(folder.url))

    def items() -> Iterable[str]:
        yield from ("x" * 20 for _ in range(100))

    with pytest.raises(StoreUnavailableError, match="No space left"):
        stage(as_source(items), full, "nonce", StageOptions(batch_size=2))
    assert folder.store.list() == []
