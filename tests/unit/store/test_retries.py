"""Links between jobs, sums over them, and files of what did not succeed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.app import run
from orchestrator.core.model import ItemOutcome
from orchestrator.errors import ConfigurationError, JobConflictError, SourceError
from orchestrator.flows.links import link_new
from orchestrator.store import JobFolder, job_folder_url
from orchestrator.store.chains import follow
from orchestrator.store.deadletter import write_dead_letter
from orchestrator.store.retries import LEFT, living_retries, read_retries
from orchestrator.testing import Simulation, simulate


def bad(*numbers: int) -> Callable[[Any], Any]:
    def process(item: Any) -> Any:
        if (item if isinstance(item, int) else item["n"]) in numbers:
            raise ValueError(f"{item} is bad")
        return item

    return process


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "jobs")


def at(root: str, job_id: str) -> JobFolder:
    return JobFolder(job_folder_url(root, job_id))


def job(root: str, job_id: str, items: Any, *numbers: int, **request: Any) -> Simulation:
    return simulate(bad(*numbers), items, job_id=job_id, storage=root, batch_size=3, **request)


def linked(root: str, job_id: str) -> list[tuple[str, list[str]]]:
    return [(retry.job_id, sorted(retry.only)) for retry in living_retries(at(root, job_id))]


# ---------------------------------------------------------------- links


def test_a_job_over_what_another_left_is_linked_both_ways(root: str):
    job(root, "first", range(10), 2, 5, 7)
    later = job(root, "second", "job:first?outcome=failed", 5)
    assert later.folder.read_job().spec["retry_of"] == "first"
    assert later.report.retry_of == "first"
    assert linked(root, "first") == [("second", ["failed"])]
    assert linked(root, "second") == []
    page = later.engine.pages
    assert any("Runs again what job `first` left" in str(text) for text in page.values())


def test_a_step_over_what_succeeded_is_no_retry(root: str):
    job(root, "first", range(10), 2)
    assert job(root, "second", "job:first?outcome=succeeded").folder.read_job().retry_of is None
    assert linked(root, "first") == []


def test_items_are_handed_on_once_unless_again(root: str):
    job(root, "first", range(10), 2, 5)
    job(root, "second", "job:first?outcome=failed", 5)
    with pytest.raises(ConfigurationError, match=r"handed to job 'second' already.*orchestrator retry second.*--again"):
        job(root, "third", "job:first?outcome=failed,unknown")
    assert not (Path(root) / "third").exists()
    # None of its items are unknown: nothing of theirs was handed on.
    job(root, "fourth", "job:first?outcome=unknown")
    assert job(root, "third", "job:first?outcome=failed&again=true").report.items.total == 2
    assert [name for name, _ in linked(root, "first")] == ["second", "fourth", "third"]


def test_a_job_that_goes_on_hands_nothing_on(root: str):
    job(root, "first", range(10), 2)
    at(root, "first").store.delete("report.json")
    with pytest.raises(SourceError, match="is not over"):
        job(root, "second", "job:first?outcome=failed")


def test_a_link_whose_job_is_gone_or_is_another_job_by_now_counts_for_nothing(root: str):
    job(root, "first", range(10), 2)
    job(root, "second", "job:first?outcome=failed", 2)
    at(root, "second").delete()
    assert linked(root, "first") == []
    job(root, "second", range(3))
    assert linked(root, "first") == []
    assert job(root, "third", "job:first?outcome=failed").report.items.succeeded == 1


def test_a_parent_that_died_before_the_link_is_completed_by_who_comes_next(root: str):
    job(root, "first", range(10), 2, 5)
    job(root, "second", "job:first?outcome=failed", 5)
    at(root, "first").store.delete("retries/1.json")
    assert follow(at(root, "second")).items.succeeded == 9
    assert linked(root, "first") == [("second", ["failed"])]
    at(root, "first").store.delete("retries/1.json")
    at(root, "second").store.delete("report.json")
    job(root, "second", "job:first?outcome=failed", 5)  # its parent is started again
    assert linked(root, "first") == [("second", ["failed"])]


def test_of_two_that_take_the_same_items_at_once_one_is_gone_again(root: str):
    job(root, "first", range(10), 2)

    def take(job_id: str) -> str:
        try:
            job(root, job_id, "job:first?outcome=failed")
        except ConfigurationError as e:
            return "refused" if "were handed to job" in str(e) else str(e)
        return "took"

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(take, "abcd")) == ["refused", "refused", "refused", "took"]
    assert len(linked(root, "first")) == 1


def test_the_slower_of_two_leaves_nothing_behind(root: str):
    job(root, "first", range(10), 2)
    job(root, "a", "job:first?outcome=failed")
    job(root, "b", "job:first?outcome=failed&again=true")
    folder = at(root, "b")
    record = json.loads(folder.store.get("job.json") or b"")
    record["spec"]["source"].pop("again")
    folder.store.put("job.json", json.dumps(record).encode())
    with pytest.raises(JobConflictError, match="handed to job 'a' at the same moment"):
        link_new(at(root, "b"))
    assert not (Path(root) / "b" / "job.json").exists()
    assert linked(root, "first") == [("a", ["failed"])]


@pytest.mark.parametrize(
    "link", [b"", b"{}", b"[]", b'{"format": 1, "job_id": "../x", "only": ["failed"]}', b'{"format": 99}', b"\xff"]
)
def test_links_that_nobody_could_follow_are_passed_over(root: str, link: bytes):
    folder = job(root, "first", range(10), 2).folder
    folder.store.put("retries/1.json", link)
    folder.store.put("retries/x.json", link)
    assert read_retries(folder) == []
    assert job(root, "second", "job:first?outcome=failed").report.items.total == 1
    assert follow(folder).items.succeeded == 10


# ---------------------------------------------------------------- chains


def test_a_chain_accounts_for_the_first_input_wherever_it_is_asked(root: str):
    job(root, "first", range(10), 2, 5, 7)
    job(root, "second", "job:first?outcome=failed,unknown,not_started", 5, 7)
    job(root, "third", "job:second?outcome=failed", 7)
    for name in ("first", "second", "third"):
        chain = follow(at(root, name))
        assert (chain.first.job_id, chain.items.total, chain.items.succeeded, chain.items.failed) == ("first", 10, 9, 1)


def test_a_chain_counts_what_was_handed_on_twice_once(root: str):
    job(root, "first", range(10), 2, 5, 7)
    job(root, "second", "job:first?outcome=failed", 5, 7)
    job(root, "third", "job:first?outcome=failed&again=true", 2, 7)
    assert follow(at(root, "first")).items.succeeded == 9


def test_a_retry_that_goes_on_changes_nothing_yet(root: str):
    job(root, "first", range(10), 2, 5)
    job(root, "second", "job:first?outcome=failed", 5).folder.store.delete("report.json")
    chain = follow(at(root, "second"))
    assert (chain.items.succeeded, chain.items.failed, chain.running) == (8, 2, ("second",))


def test_a_chain_begins_where_the_folders_begin(root: str):
    job(root, "first", range(10), 2, 5)
    job(root, "second", "job:first?outcome=failed", 5)
    at(root, "first").delete()
    chain = follow(at(root, "second"))
    assert (chain.first.job_id, chain.items.total, chain.gone) == ("second", 2, "first")


def test_folders_that_name_each_other_are_not_followed_for_ever(root: str):
    job(root, "first", range(10), 2)
    job(root, "second", "job:first?outcome=failed", 2)
    folder = at(root, "first")
    record = json.loads(folder.store.get("job.json") or b"")
    record["spec"].update(retry_of="second", source={"kind": "job", "job": "second", "outcome": ["failed"]})
    folder.store.put("job.json", json.dumps(record).encode())
    with pytest.raises(ConfigurationError, match="more than 200 jobs"):
        follow(at(root, "first"))


def test_the_command_line_shows_chains_and_links(root: str, capsys: pytest.CaptureFixture[str]):
    job(root, "first", range(10), 2, 5)
    job(root, "second", "job:first?outcome=failed", 5)
    assert run(["report", "first", "--chain", "--storage", root]) == 1
    said = capsys.readouterr().out
    assert "items: 10 = 9 succeeded + 1 failed + 0 unknown + 0 not started" in said
    assert "second (2 failed of first): " in said
    assert run(["report", "second", "--chain", "--json", "--storage", root]) == 1
    data = json.loads(capsys.readouterr().out)
    assert (data["first"], data["items"]["succeeded"]) == ("first", 9)
    assert [(j["job_id"], j["retry_of"], j["only"]) for j in data["jobs"]] == [
        ("first", None, []), ("second", "first", ["failed"]),
    ]  # fmt: skip
    run(["report", "first", "--storage", root])
    run(["report", "second", "--storage", root])
    said = capsys.readouterr().out
    assert "what it left was run again by job second" in said
    assert "runs again what job first left" in said
    run(["report", "first", "--json", "--storage", root])
    data = json.loads(capsys.readouterr().out)
    assert (data["retry_of"], data["retried_by"]) == (None, ["second"])
    run(["status", "first", "--storage", root])
    run(["status", "second", "--storage", root])
    said = capsys.readouterr().out
    assert "retried by   second" in said
    assert "retry of     first" in said


# ---------------------------------------------------------------- what retry and run make of it


def test_retry_and_run_over_the_same_job_give_the_same_items_keys_and_link(root: str, tmp_path: Path):
    what = [{"id": f"image-{n}", "n": n} for n in range(10)]
    for first, later, source in (
        ("one", "one-again", "job:one?outcome=failed"),
        ("two", "two-again", {"kind": "job", "job": "two", "outcome": ["failed"]}),
    ):
        job(root, first, what, 3, 7, key="id")
        job(root, later, source)
        folder = at(root, later)
        found = [(item.key, item.value) for item, _ in folder.items(tuple(ItemOutcome))]
        assert found == [("image-3", what[3]), ("image-7", what[7])]
        assert folder.read_job().retry_of == first
        assert linked(root, first) == [(later, ["failed"])]


# ---------------------------------------------------------------- dead letters


@pytest.mark.parametrize("name", ["left.jsonl", "left.jsonl.gz"])
def test_what_did_not_succeed_is_a_file_of_items_that_keep_their_keys(root: str, tmp_path: Path, name: str):
    what = [{"id": f"image-{n}", "n": n, "text": "é\u2028\n"} for n in range(10)]
    folder = job(root, "first", what, 3, 7, key="id").folder
    file = tmp_path / name
    assert write_dead_letter(folder, str(file), LEFT) == 2
    data = gzip.decompress(file.read_bytes()) if name.endswith("gz") else file.read_bytes()
    lines = [json.loads(line) for line in data.splitlines()]
    assert lines[0] == {
        "item": what[3], "key": "image-3", "index": 3, "outcome": "failed",
        "error": {"type": "ValueError", "text": lines[0]["error"]["text"]}, "tries": 1,
    }  # fmt: skip
    again = job(root, "second", str(file), 7, select="item", key="key")
    assert [(i.key, i.value) for i, _ in again.folder.items(tuple(ItemOutcome))] == [
        ("image-3", what[3]), ("image-7", what[7]),
    ]  # fmt: skip
    assert sorted(tmp_path.glob("*.part")) == []


def test_dead_letters_may_go_to_any_storage_and_to_standard_output(
    root: str, capfdbinary: pytest.CaptureFixture[bytes]
):
    folder = job(root, "first", range(10), 2).folder
    assert write_dead_letter(folder, "memory://bucket/left.jsonl", LEFT) == 1
    assert job(root, "second", "memory://bucket/left.jsonl", select="item", key="key").report.items.total == 1
    assert run(["results", "first", "--dead-letter", "-", "--outcome", "all", "--limit", "4", "--storage", root]) == 0
    lines = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [(line["item"], line["outcome"], line["error"]) for line in lines] == [
        (0, "succeeded", None), (1, "succeeded", None),
        (2, "failed", {"type": "ValueError", "text": "2 is bad"}), (3, "succeeded", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "place", ["left.csv", "nowhere/at/all/left.jsonl", "nonsense://x/left.jsonl", "s3://a:b@c/l.jsonl"]
)
def test_a_place_that_cannot_take_dead_letters_is_refused(
    root: str, place: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    job(root, "first", range(10), 2)
    assert run(["results", "first", "--dead-letter", place, "--storage", root]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.glob("left*"))


def test_a_job_that_is_not_over_has_no_dead_letters_yet(root: str, capsys: pytest.CaptureFixture[str]):
    job(root, "first", range(10), 2).folder.store.delete("report.json")
    assert run(["results", "first", "--dead-letter", "-", "--storage", root]) == 2
    assert "is not over" in capsys.readouterr().err
