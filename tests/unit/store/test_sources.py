"""Every kind of source, and what is wrong with the bad ones: source, line, reason, remedy."""

from __future__ import annotations

import gzip
import io
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from orchestrator.core.model import ItemOutcome
from orchestrator.errors import JobNotFoundError, SourceError
from orchestrator.store import (
    JobFolder,
    JobRecord,
    Ledger,
    OutcomeRecord,
    Source,
    SourcePolicy,
    StageOptions,
    as_source,
    job_folder_url,
    parse_source,
    source_from_json,
    stage,
)


def values(source: Source) -> list[Any]:
    return [row.value for row in source.read()]


def lines(source: Source) -> list[int | None]:
    return [row.line for row in source.read()]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


Write = Callable[[str, str | bytes], str]


class TestFormats:
    def test_text_has_one_item_per_line_and_skips_blank_ones(self, write: Write) -> None:
        source = parse_source(write("a.txt", "one\r\n\n  two  \n\nthrée"))
        assert list(source.read()) == [(1, "one", None), (3, "two", None), (5, "thrée", None)]

    def test_json_lines_have_one_value_per_line(self, write: Write) -> None:
        source = parse_source(write("a.jsonl", '{"a": 1}\n\n"x"\n[1, 2]\nnull\n 3.5 '))
        assert values(source) == [{"a": 1}, "x", [1, 2], None, 3.5]
        assert lines(source) == [1, 3, 4, 5, 6]

    def test_csv_gives_mappings_of_header_to_text(self, write: Write) -> None:
        source = parse_source(write("a.csv", 'id,name\n1,"a, b"\n\n2,"two\nlines"\n3,c\n'))
        assert values(source) == [
            {"id": "1", "name": "a, b"},
            {"id": "2", "name": "two\nlines"},
            {"id": "3", "name": "c"},
        ]
        assert lines(source) == [2, 5, 6]

    def test_json_is_read_member_by_member(self, write: Write) -> None:
        source = parse_source(write("a.json", '\n[\n {"a": [1, {"b": "]"}]},\n 12 ,"x",\n true]\n'))
        assert values(source) == [{"a": [1, {"b": "]"}]}, 12, "x", True]
        assert lines(source) == [3, 4, 4, 5]

    def test_a_json_array_longer_than_the_window_is_read_whole(self, write: Write) -> None:
        members = [{"n": i, "text": "é" * 100} for i in range(20_000)] + ["x" * 5_000_000, 123456789]
        import json

        source = parse_source(write("a.json", json.dumps(members, ensure_ascii=False)))
        assert values(source) == members

    def test_without_its_package_parquet_names_the_extra(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(SourceError, match=r"install the extra 'parquet' of .*pip install '\.\[parquet\]'"):
            values(parse_source(write("a.parquet", b"PAR1")))

    def test_parquet_gives_rows_as_mappings(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        rows = [{"id": i, "name": f"n{i}", "tags": ["a"], "none": None} for i in range(5000)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        assert values(parse_source(str(path))) == rows

    @pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.json", "a.jsonl"])
    def test_a_byte_order_mark_is_no_part_of_the_first_item(self, write: Write, name: str) -> None:
        content = {"a.txt": "x", "a.csv": "id\nx", "a.json": '["x"]', "a.jsonl": '"x"'}[name]
        first = values(parse_source(write(name, b"\xef\xbb\xbf" + content.encode())))[0]
        assert first in ("x", {"id": "x"})

    def test_packed_files_are_unpacked(self, write: Write) -> None:
        assert values(parse_source(write("a.jsonl.gz", gzip.compress(b"1\n2\n")))) == [1, 2]

    @pytest.mark.parametrize(
        ("name", "content"), [("a.txt", ""), ("a.jsonl", "\n"), ("a.csv", "id\n"), ("a.json", "[ ]")]
    )
    def test_an_empty_collection_has_no_items(self, write: Write, name: str, content: str) -> None:
        assert values(parse_source(write(name, content))) == []

    @pytest.mark.parametrize(
        ("name", "content", "line", "said"),
        [
            ("a.txt", b"ok\n\xff\xfe\n", 2, "not UTF-8"),
            ("a.jsonl", '1\n{"a": }\n', 2, "is not JSON: Expecting value at column 7"),
            ("a.jsonl", "[\n1,\n2]", 1, r"must be named \.json"),
            ("a.jsonl", "1\n\nNaN\n", 3, "NaN is not JSON; use null"),
            ("a.jsonl", "1\n[-Infinity]\n", 2, "-Infinity is not JSON"),
            ("a.jsonl", "1 2\n", 1, "Extra data"),
            ("a.jsonl", b"1\n\xff\n", 2, "not UTF-8"),
            ("a.jsonl", "[" * 100_000 + "\n", 1, "nested too deeply"),
            ("a.jsonl", "9" * 5_000 + "\n", 1, "is not JSON"),
            ("a.csv", "", None, "at least a header"),
            ("a.csv", "id,id\n1,2\n", 1, "names 'id' twice"),
            ("a.csv", "id,\n1,2\n", 1, "column 2 of the header has no name"),
            ("a.csv", "id,n\n1,2\n3\n", 3, "has 1 values where the header has 2"),
            ("a.csv", "id,n\n1,2,3\n", 2, "has 3 values where the header has 2"),
            ("a.csv", 'id\n"1\n', 2, "is not CSV"),
            ("a.csv", b"id\n\xff\n", 2, "not UTF-8"),
            ("a.json", "", None, "is empty"),
            ("a.json", '{"a": 1}', 1, r"not a JSON array; for one item per line name the file \.jsonl"),
            ("a.json", "1\n2\n", 1, r"\.jsonl"),
            ("a.json", "[1,\n2", 2, "ends before the array does"),
            ("a.json", "[1,\n2 3]", 2, "',' or ']' is missing"),
            ("a.json", "[1,]", 1, "is not JSON"),
            ("a.json", "[1]\n[2]", 2, "goes on after the end"),
            ("a.json", "[1,\nNaN]", 2, "NaN is not JSON"),
            ("a.json", b'[\n"\xff"]', 1, "not UTF-8"),
            ("a.parquet", "no", None, "is not Parquet"),
            ("a.jsonl.gz", "no", None, "cannot be read"),
            ("a.jsonl.gz", gzip.compress(b"1\n" * 9999, mtime=0)[:-9], None, "cannot be read"),
        ],
    )
    def test_a_malformed_file_is_refused_with_line_and_reason(
        self, write: Write, name: str, content: str | bytes, line: int | None, said: str
    ) -> None:
        with pytest.raises(SourceError, match=said) as caught:
            list(parse_source(write(name, content)).read())
        assert caught.value.line == line
        assert name in str(caught.value)
        assert caught.value.exit_code == 2


class TestPlaces:
    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"gone\.csv: there is no such file"):
            list(parse_source(str(tmp_path / "gone.csv")).read())

    def test_a_folder_is_refused_with_the_remedy(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"is a folder; .* use glob:"):
            parse_source(str(tmp_path))
        (tmp_path / "odd.csv").mkdir()
        with pytest.raises(SourceError, match=r"is a folder; .* use glob:"):
            list(parse_source(str(tmp_path / "odd.csv")).read())

    def test_a_name_without_a_format_is_refused_with_the_known_ones(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"known are \.txt, \.csv"):
            parse_source(str(tmp_path / "items.xml"))

    def test_a_relative_path_is_made_absolute_when_it_is_read_as_text(
        self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write("a.txt", "x")
        monkeypatch.chdir(tmp_path)
        source = parse_source("a.txt")
        monkeypatch.chdir("/")
        assert values(source) == ["x"]
        assert source.describe()["path"] == str(tmp_path / "a.txt")

    def test_any_fsspec_url_will_do(self) -> None:
        import fsspec

        fsspec.filesystem("memory").pipe_file("/in/a.jsonl", b"1\n2\n")
        assert values(parse_source("memory://in/a.jsonl")) == [1, 2]
        assert values(parse_source("glob:memory://in/*.jsonl")) == ["memory:///in/a.jsonl"]
        with pytest.raises(SourceError, match="there is no such file"):
            list(parse_source("memory://in/b.jsonl").read())

    def test_user_info_in_a_url_is_refused(self) -> None:
        with pytest.raises(SourceError, match="credentials belong") as caught:
            parse_source("https://me:secret@host/a.csv")
        assert "secret" not in str(caught.value)

    def test_glob_gives_the_paths_of_files_in_order(self, write: Write, tmp_path: Path) -> None:
        (tmp_path / "deep").mkdir()
        paths = [write("b.png", ""), write("a.png", ""), write("deep/c.png", ""), write("d.txt", "")]
        (tmp_path / "e.png").mkdir()
        assert values(parse_source(f"glob:{tmp_path}/*.png")) == sorted(paths[:2])
        assert values(parse_source(f"glob:{tmp_path}/**/*.png")) == sorted(paths[:3])
        with pytest.raises(SourceError, match="there is no folder"):
            list(parse_source(f"glob:{tmp_path}/nowhere/*.png").read())

    def test_standard_input_is_json_lines(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"a": 1}\n2\n')))
        assert values(parse_source("-")) == [{"a": 1}, 2]

    def test_standard_input_is_refused_where_nobody_types(self) -> None:
        with pytest.raises(SourceError, match="no standard input"):
            parse_source("-", policy=SourcePolicy(allow_stdin=False))
        with pytest.raises(SourceError, match="no standard input"):
            source_from_json({"kind": "stdin"}, policy=SourcePolicy(allow_stdin=False))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class TestHttp:
    def test_files_are_read_over_http(self, served: str, write: Write, tmp_path: Path) -> None:
        write("a.csv", "id\n1\n")
        pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2]}), tmp_path / "a.parquet")
        assert values(parse_source(f"{served}/a.csv?signature=x")) == [{"id": "1"}]
        assert values(parse_source(f"{served}/a.parquet")) == [{"id": 1}, {"id": 2}]

    def test_what_the_server_says_is_said(self, served: str) -> None:
        with pytest.raises(SourceError, match="404") as caught:
            list(parse_source(f"{served}/gone.csv?signature=secret").read())
        assert "secret" not in str(caught.value)

    def test_it_is_refused_where_it_is_not_allowed(self) -> None:
        with pytest.raises(SourceError, match="ORCHESTRATOR_ALLOW_HTTP_SOURCES"):
            parse_source("http://host/a.csv", policy=SourcePolicy(allow_http=False))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "made_items.py").write_text(
        "def good():\n    yield from ({'n': i} for i in range(3))\n"
        "def breaks():\n    yield 1\n    yield 2\n    raise ValueError('no more')\n"
        "def wants(x):\n    return [x]\n"
        "def nothing():\n    return None\n"
        "async def later():\n    yield 1\n"
        "async def coroutine():\n    return [1]\n"
        "class Group:\n    @staticmethod\n    def items():\n        return [1]\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "made_items", raising=False)
    return "made_items"


class TestPython:
    def test_a_callable_is_called_and_gone_through(self, module: str) -> None:
        assert values(parse_source(f"python:{module}:good")) == [{"n": 0}, {"n": 1}, {"n": 2}]
        assert values(parse_source(f"python:{module}:Group.items")) == [1]

    @pytest.mark.parametrize(
        ("name", "line", "said"),
        [
            ("made_items:breaks", 3, "raised ValueError: no more"),
            ("made_items:wants", None, "raised TypeError"),
            ("made_items:nothing", None, "gave no items"),
            ("made_items:later", None, "is asynchronous"),
            ("made_items:coroutine", None, "is asynchronous"),
            ("made_items:number", None, "not callable"),
            ("made_items:gone", None, "has no gone"),
            ("nowhere_at_all:x", None, "no module 'nowhere_at_all'"),
        ],
    )
    def test_what_goes_wrong_in_it_is_said(self, module: str, name: str, line: int | None, said: str) -> None:
        with pytest.raises(SourceError, match=said) as caught:
            list(parse_source(f"python:{name}").read())
        assert caught.value.line == line

    def test_only_modules_that_are_allowed_are_imported(self, module: str) -> None:
        policy = SourcePolicy(python_modules=("made",))
        with pytest.raises(SourceError, match="ORCHESTRATOR_PYTHON_SOURCES"):
            parse_source(f"python:{module}:good", policy=policy)
        assert module not in sys.modules
        parse_source("python:made.items:good", policy=policy)
        parse_source(f"python:{module}:good", policy=SourcePolicy(python_modules=(module,)))

    @pytest.mark.parametrize("text", ["python:", "python:os", "python:os:", "python:../x:y", "python:os:system('x')"])
    def test_what_is_no_callable_is_refused(self, text: str) -> None:
        with pytest.raises(SourceError, match="write python:MODULE:CALLABLE"):
            parse_source(text)


class TestRangesAndTexts:
    def test_a_range_counts(self) -> None:
        assert values(parse_source("range:2:5")) == [2, 3, 4]
        assert values(parse_source("range:0:10:5")) == [0, 5]
        assert values(parse_source("range:5:2:-1")) == [5, 4, 3]
        assert values(parse_source("range:5:5")) == []

    @pytest.mark.parametrize(
        "text",
        [
            "range:5:2",
            "range:0:999999999999999999999",
            "range:",
            "range:1",
            "range:a:b",
            "range:1:2:3:4",
            "range:1:2:0",
            "range:1.5:2",
        ],
    )
    def test_what_is_no_range_is_refused(self, text: str) -> None:
        with pytest.raises(SourceError, match="range"):
            parse_source(text)

    def test_nothing_names_no_items(self) -> None:
        with pytest.raises(SourceError, match="names no items"):
            parse_source("  ")


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A storage root with the job `first`: items 0 and 3 succeeded, 1 failed, 2 unknown, 4 and 5 not started."""
    root = str(tmp_path / "jobs")
    folder = JobFolder(job_folder_url(root, "first"))
    items = [{"id": f"k{i}", "n": i} for i in range(6)]
    staged = stage(as_source(items), folder, "n", StageOptions(batch_size=4, key="id"))
    folder.create_job(JobRecord("first", "n", "2025-01-01T00:00:00Z", {}, staged.total, staged.batches))
    ledger = Ledger(folder, 0, 0, 4)
    ledger.open()
    for index in (3, 0):
        ledger.record(OutcomeRecord(index, f"k{index}", ItemOutcome.SUCCEEDED, result={"square": index**2}))
    ledger.record(OutcomeRecord(1, "k1", ItemOutcome.FAILED, 1, "ValueError", "odd"))
    ledger.close()
    folder.write_report({"verdict": "tripped"})
    return root


class TestEarlierJobs:
    @pytest.mark.parametrize(
        ("query", "numbers"),
        [
            ("", [1]),
            ("?outcome=failed", [1]),
            ("?outcome=unknown", [2]),
            ("?outcome=not_started,failed", [1, 4, 5]),
            ("?outcome=all", [0, 1, 2, 3, 4, 5]),
        ],
    )
    def test_items_are_taken_by_outcome_and_keep_their_keys(self, root: str, query: str, numbers: list[int]) -> None:
        rows = list(parse_source(f"job:first{query}", storage=root).read())
        assert [(row.value["n"], row.key) for row in rows] == [(n, f"k{n}") for n in numbers]

    def test_results_come_in_input_order(self, root: str) -> None:
        assert list(parse_source("results:first", storage=root).read()) == [
            (1, {"square": 0}, "k0"),
            (4, {"square": 9}, "k3"),
        ]

    def test_results_of_a_series_are_those_of_all_its_jobs_that_are_over(self, root: str) -> None:
        for name in ("first-2", "first-3", "other"):
            shutil.copytree(Path(root) / "first", Path(root) / name)
        (Path(root) / "first-3" / "report.json").unlink()
        rows = list(parse_source("results:first*", storage=root).read())
        assert [row.key for row in rows] == ["k0", "k3"] * 2
        with pytest.raises(SourceError, match="there is no job of such an id that is over"):
            list(parse_source("results:first-3*", storage=root).read())

    @pytest.mark.parametrize("text", ["job:first", "results:first"])
    def test_a_job_that_is_not_over_leaves_nothing_yet(self, root: str, text: str) -> None:
        JobFolder(job_folder_url(root, "first")).store.delete("report.json")
        with pytest.raises(SourceError, match="is not over"):
            list(parse_source(text, storage=root).read())

    def test_an_unknown_job_is_said(self, root: str) -> None:
        with pytest.raises(JobNotFoundError):
            list(parse_source("job:second", storage=root).read())

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("job:first?outcome=lost", "unknown outcome 'lost'; known are succeeded, failed"),
            ("job:first?state=failed", r"only \?outcome="),
            ("job:../first", "cannot name a job"),
            ("results:", "cannot name a job"),
        ],
    )
    def test_what_names_no_items_of_a_job_is_refused(self, root: str, text: str, said: str) -> None:
        with pytest.raises(SourceError, match=said):
            parse_source(text, storage=root)

    def test_without_storage_there_are_no_earlier_jobs(self) -> None:
        with pytest.raises(SourceError, match="where the storage is known"):
            parse_source("job:first")


class TestForms:
    def test_every_source_that_can_be_described_is_read_back_from_its_description(
        self, root: str, write: Write, module: str
    ) -> None:
        path = write("a.csv", "id\n1\n")
        texts = [
            path,
            "range:0:3",
            "range:0:9:2",
            f"glob:{path}",
            f"python:{module}:good",
            "job:first?outcome=failed,unknown",
            "job:first?outcome=all",
            "results:first",
            "-",
        ]
        for text in texts:
            source = parse_source(text, storage=root)
            assert source_from_json(source.describe(), storage=root) == source

    def test_a_list_in_the_form_is_described_by_count_and_hash(self) -> None:
        source = source_from_json({"kind": "inline", "items": [1, {"a": None}]})
        assert values(source) == [1, {"a": None}]
        assert source.describe() == as_source([1, {"a": None}]).describe()
        assert source.describe() != as_source([1, {"a": 0}]).describe()
        assert source.describe()["count"] == 2

    @pytest.mark.parametrize(
        "data",
        [
            {},
            {"kind": "sql"},
            {"kind": "file"},
            {"kind": "file", "path": 3},
            {"kind": "file", "path": "x.csv", "format": "xml"},
            {"kind": "inline", "items": "abc"},
            {"kind": "range", "stop": "9"},
            {"kind": "range", "start": 0, "stop": 9, "step": 0},
            {"kind": "job", "job": "a/b"},
        ],
    )
    def test_a_mapping_that_describes_no_source_is_refused(self, data: dict[str, Any]) -> None:
        with pytest.raises(SourceError):
            source_from_json(data, storage="memory://jobs")

    def test_python_code_hands_over_what_it_has(self, tmp_path: Path, write: Write) -> None:
        assert values(as_source([1, 2])) == [1, 2]
        assert values(as_source((1, 2))) == [1, 2]
        assert values(as_source(range(3))) == [0, 1, 2]
        assert values(as_source(n * n for n in range(3))) == [0, 1, 4]
        assert values(as_source(lambda: iter([1]))) == [1]
        assert values(as_source(Path(write("a.txt", "x")))) == ["x"]
        assert values(as_source({"kind": "range", "stop": 2})) == [0, 1]
        source = as_source([1])
        assert as_source(source) is source
        for wrong in (3, None, b"bytes"):
            with pytest.raises(SourceError, match="is no source of items"):
                as_source(wrong)


def test_a_function_that_wants_to_end_the_program_is_no_source() -> None:
    def leaves() -> Iterator[int]:
        yield 1
        raise SystemExit(0)

    with pytest.raises(SourceError, match=r"line 2: raised SystemExit"):
        values(as_source(leaves))
