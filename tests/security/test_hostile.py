"""Hostile children, references, keys and texts: nothing is unpickled, evaluated, followed or rendered."""

from __future__ import annotations

import base64
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.schemas.objects import FlowRun, State, StateType

from orchestrator.core.model import UNREACHABLE
from orchestrator.engine import progress
from orchestrator.engine.masking import MASK, Masker, too_short
from orchestrator.engine.parent import run_of
from orchestrator.errors import ConfigurationError, JobConflictError
from orchestrator.flows.form import read_items
from orchestrator.reactor.page import code, escape
from orchestrator.store import JobFolder, SourcePolicy, as_source, check_job_id, job_folder_url
from orchestrator.testing import simulate
from tests.unit.batchrun.jobs import Door, StagedJob, chosen

FIRED: list[str] = []


class Trap:
    """Says so when it is unpickled."""

    def __reduce__(self) -> Any:
        return FIRED.append, ("unpickled",)


def trap() -> str:
    return base64.b64encode(pickle.dumps(Trap())).decode()


# ------------------------------------------------------------------ what a child says


def test_the_data_of_a_child_s_state_is_not_unpickled() -> None:
    reference = {"type": "result", "serializer": {"type": "pickle"}, "expiration": None, "prefect_version": "3",
                 "storage_key": "../../../etc/passwd", "blob": trap()}  # fmt: skip
    for data in (reference, {"type": "pickle", "blob": trap()}, trap()):
        run = FlowRun(flow_id="00000000-0000-0000-0000-000000000000", name="child",
                      state=State(type=StateType.COMPLETED, message="{" * 100_000, data=data))  # fmt: skip
        seen = run_of(run, Masker())
        assert seen.phase.value == "COMPLETED"
        assert len(seen.message or "") <= 2000
    assert FIRED == []


@pytest.mark.parametrize(
    "metadata",
    [
        {"batch": "0", "attempt": "0", "sequence": "1", "succeeded": "9" * 400, "failed": "0"},
        {"batch": "0", "attempt": "0", "sequence": "1", "succeeded": "5", "failed": "5", "total": "4"},
        {"batch": "-1", "attempt": "0", "sequence": "1", "succeeded": "0", "failed": "0"},
        {"batch": "0", "attempt": "0", "sequence": "1", "succeeded": "__import__('os')", "failed": "0"},
        {"batch": {"$ref": "x"}, "attempt": "0", "sequence": "1", "succeeded": "0", "failed": "0"},
        [], "x", None, {"batch": None},
    ],
)  # fmt: skip
def test_news_that_cannot_be_is_no_news(metadata: Any) -> None:
    assert progress.decode(metadata) is None


FIELDS = st.sampled_from(["batch", "attempt", "sequence", "succeeded", "failed", "errors", "first_failure"])
VALUES = st.one_of(st.text(), st.integers(), st.none(), st.just("[" * 100_000), st.just('{"index":1e999}'))


@given(st.dictionaries(FIELDS, VALUES))
def test_whatever_an_artifact_holds_it_is_counts_or_nothing(metadata: dict[str, Any]) -> None:
    news = progress.decode(metadata)
    assert news is None or news.counts.settled >= 0


# ------------------------------------------------------------------ where references lead


def test_a_reference_to_another_folder_or_job_runs_nothing(tmp_path: Path) -> None:
    from orchestrator.batchrun.run import run_batch

    ran: list[Any] = []
    mine, other = StagedJob(tmp_path / "mine", [1, 2]), StagedJob(tmp_path / "other", [3, 4])
    reference = mine.reference()
    foreign = [
        replace(reference, nonce="changed"),
        replace(reference, job="other-name"),
        replace(reference, folder=other.reference().folder, nonce="another"),
    ]  # fmt: skip
    for wrong in foreign:
        with pytest.raises(JobConflictError):
            run_batch(wrong, chosen(ran.append), Door())
    for folder in (str(tmp_path), "/etc", "zebra://x/y", "block:secret/token", "block:../../etc"):
        ended = run_batch(replace(reference, folder=folder), chosen(ran.append), Door())
        assert (ended.type, ended.name) == ("FAILED", UNREACHABLE)
    for part in ("../../../etc/passwd", "/etc/passwd", "job.json", f"items/{reference.nonce}/../../job.json"):
        assert run_batch(replace(reference, part=part, attempt=1), chosen(ran.append), Door()).type == "FAILED"
        mine.folder.store.delete("b/0/a1.end")
    assert ran == []


@pytest.mark.parametrize(
    "job", ["../x", "..", ".", "/etc", "a/b", "a\\b", "x" * 81, "", "a\0b", "j\u00f6b", "%2e%2e", "a\n"]
)
def test_a_job_id_never_leaves_the_storage(job: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        check_job_id(job)
    with pytest.raises(ConfigurationError):
        job_folder_url(str(tmp_path), job)


def test_keys_never_become_paths(tmp_path: Path) -> None:
    keys = ["../../etc/passwd", "/etc/passwd", "..", "a\0b", "b/../../x", "~root", "$(touch x)", "x" * 1000]
    items = [{"id": key} for key in keys]
    done = simulate(
        lambda item: item, items, key="id", batch_size=3, job_id="j", storage=str(tmp_path), max_in_flight=2
    )
    assert done.report.items.succeeded == len(keys)
    names = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert all(name.parts[0] == "j" and len(str(name)) < 80 for name in names)
    assert [o.key for o in JobFolder(str(tmp_path / "j")).outcomes()] == keys


# ------------------------------------------------------------------ what a deployment may read


@pytest.mark.parametrize(
    ("items", "setting"),
    [
        ({"callable": "os:listdir"}, "ORCHESTRATOR_PYTHON_SOURCES"),
        ({"callable": "shopping.more:f"}, "ORCHESTRATOR_PYTHON_SOURCES"),
        ("python:os:listdir", "ORCHESTRATOR_PYTHON_SOURCES"),
        ({"path": "http://127.0.0.1:9/x.jsonl"}, "ORCHESTRATOR_ALLOW_HTTP_SOURCES"),
        ({"path": "HTTPS://127.0.0.1:9/x.jsonl"}, "ORCHESTRATOR_ALLOW_HTTP_SOURCES"),
        ("https://127.0.0.1:9/x.csv", "ORCHESTRATOR_ALLOW_HTTP_SOURCES"),
    ],
)
def test_a_deployed_parent_reads_no_code_and_no_web_unless_allowed(items: Any, setting: str) -> None:
    policy = SourcePolicy(python_modules=("shop",), allow_http=False, allow_stdin=False)
    asked = read_items(items) if not isinstance(items, str) else None
    with pytest.raises(ConfigurationError, match=setting):
        as_source(asked.items if asked else items, storage="/tmp", policy=policy)


def test_an_allowed_module_allows_what_lies_below_it_and_nothing_beside_it() -> None:
    policy = SourcePolicy(python_modules=("shop",), allow_http=True)
    for text in ("python:shop:f", "python:shop.orders:f", "http://127.0.0.1:9/x.jsonl"):
        as_source(text, storage="/tmp", policy=policy)
    with pytest.raises(ConfigurationError):
        as_source("python:shop2:f", storage="/tmp", policy=policy)


# ------------------------------------------------------------------ what a page shows

HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[click](javascript:alert(1))", "![x](http://h/x.png)",
    "| a | b |", "`code` **bold** # head", "&lt;script&gt;", "a\n\n# Completed: all items succeeded", "\u202egnp.exe",
    "\x1b[31m",
    "$$x^2$$", "~~gone~~", "a\\`b", "javascript:alert(1)", "</td><td>",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_markup(text: str) -> None:
    shown = escape(text)
    assert "<" not in shown
    assert "\n" not in shown
    assert all(c.isprintable() for c in shown)
    for special in "`*_[]|~$!#":
        assert all(shown[i - 1] == "\\" for i, c in enumerate(shown) if c == special)
    assert "\n" not in code(text)


def test_hostile_keys_and_errors_are_harmless_on_the_page() -> None:
    def fails(item: dict[str, str]) -> None:
        raise ValueError(item["id"])

    done = simulate(fails, [{"id": text} for text in HOSTILE], key="id", batch_size=2, kill_switch=None)
    for page in done.engine.pages.values():
        assert "<script" not in page
        assert "<img" not in page
        assert "](javascript" not in page
        assert "\n# Completed: all items succeeded" not in page
    assert done.report.items.failed == len(HOSTILE)


# ------------------------------------------------------------------ masking


@pytest.mark.parametrize(
    ("values", "text", "left"),
    [
        (["abcdef", "defghi"], "xabcdefghiy", f"x{MASK}y"),
        (["abcd", "abcdef"], "abcdefg", f"{MASK}g"),
        (["a.c(d", "x*yz"], "aXc(d a.c(d x*yz xxyz", f"aXc(d {MASK} {MASK} xxyz"),
        (["one\ntwo"], "said one two", f"said {MASK}"),
        (["tick'\"et"], json.dumps("tick'\"et") + repr("tick'\"et"), f'"{MASK}"' + f"'{MASK}'"),
        (["abc"], "abc", "abc"),
        (["aaaa"], "aaaaaaa", MASK),
    ],
)
def test_secrets_are_masked_whatever_they_consist_of(
    values: list[str], text: str, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"SECRET_{n}" for n in range(len(values))]
    for name, value in zip(names, values, strict=True):
        monkeypatch.setenv(name, value)
    assert Masker(names)(text) == left


def test_a_value_too_short_to_be_masked_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONG", "long enough")
    monkeypatch.setenv("SHORT", "abc")
    assert too_short(["LONG", "SHORT", "NOT_SET"]) == ["SHORT"]


@given(st.lists(st.text(min_size=4, max_size=12), min_size=1, max_size=4), st.text(max_size=20), st.text(max_size=20))
def test_no_secret_survives(values: list[str], before: str, after: str) -> None:
    import os

    values = [v.replace("\0", "x").encode(errors="ignore").decode() for v in values]
    values = [v for v in values if len(v) >= 4]
    names = {f"ANY_SECRET_{n}": v for n, v in enumerate(values)}
    os.environ.update(names)
    try:
        masked = Masker(list(names))(before + "".join(values) + after)
    finally:
        for name in names:
            del os.environ[name]
    assert masked.replace(MASK, "").count("\n") <= (before + after).count("\n")
    assert not [v for v in values if v in masked and v not in MASK and v not in before + MASK + after]
