"""Everything wrong at the command line: exit code 2 (3 for the server), one line with the remedy, nothing created.

No server is there: what is right by itself ends with 3, and what is wrong by itself must end with 2 before that.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator.cli.app import make_app, run
from tests.badinput.watch import Deadline

WORK = ["--deployment", "it-work/default"]
HUGE = "x" * 1_000_000
NESTED = "[" * 100_000 + "]" * 100_000

FILES: dict[str, bytes] = {
    "good.jsonl": b'{"n": 1}\n{"n": 2}\n',
    "empty.jsonl": b"",
    "blank.jsonl": b"\n \n\t\n",
    "utf8.jsonl": b'{"n": "\xff\xfe"}\n',
    "utf16.jsonl": '{"n": 1}\n'.encode("utf-16"),
    "cut.jsonl": b'{"n": 1}\n{"n": ',
    "nan.jsonl": b'{"n": NaN}\n',
    "infinity.jsonl": b'{"n": -Infinity}\n',
    "large.jsonl": b'{"n": 1e999}\n',
    "digits.jsonl": b"9" * 5000 + b"\n",
    "nested.jsonl": NESTED.encode() + b"\n",
    "array.jsonl": b"[\n1,\n2\n]\n",
    "nul.jsonl": b"\0\0\0\n",
    "cut.json": b'[1, 2, {"a": ',
    "nested.json": b"[" + NESTED.encode() + b"]",
    "object.json": b'{"a": 1}',
    "more.json": b"[1] 2",
    "empty.json": b"",
    "ragged.csv": b"a,b\n1,2\n3\n",
    "quote.csv": b'a,b\n1,"2\n',
    "empty.csv": b"",
    "twice.csv": b"a,a\n1,2\n",
    "unnamed.csv": b"a,\n1,2\n",
    "cut.parquet": b"PAR1" + b"\0" * 40,
    "empty.parquet": b"",
    "cut.jsonl.gz": b"\x1f\x8b\x08\x00\x00",
    "no.jsonl.gz": b"not packed",
    "no.jsonl.xz": b"not packed",
    "no.jsonl.bz2": b"not packed",
    "items.weird": b"1\n",
    "items": b"1\n",
}  # fmt: skip

NO_ITEMS = {"good.jsonl"}
"""Files that are right: whoever gets them asks the server."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCHESTRATOR_STORAGE", str(tmp_path / "jobs"))
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "device.jsonl").symlink_to("/dev/zero")
    (tmp_path / "yaml.yaml").write_text("deployments: [{{{")
    (tmp_path / "list.yaml").write_text("- 1")
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "bad_source.py").write_text(
        "number = 3\n"
        "def raises():\n    raise RuntimeError('no\\nitems')\n"
        "def gives_none():\n    return None\n"
        "def breaks_off():\n    yield 1\n    raise ValueError('half-way')\n"
        "def leaves():\n    raise SystemExit(7)\n"
        "def gives_objects():\n    yield object()\n"
    )
    (tmp_path / "broken_source.py").write_text("def (:\n")
    return tmp_path


def check(arguments: list[str], place: Path, capfd: pytest.CaptureFixture[str], codes: tuple[int, ...] = (2,)) -> str:
    """Run it, and hold it to what all refusals keep; what it said."""
    capfd.readouterr()
    shown = " ".join(a if len(a) < 60 else a[:60] + "…" for a in arguments)
    with Deadline(20, shown):
        code = run(arguments)
    said = capfd.readouterr()
    assert code in codes, f"{shown}: ended with {code}: {said.err[:500]}"
    assert "Traceback" not in said.err
    assert "unexpected" not in said.err, f"{shown}: {said.err[:500]}"
    if code:
        begun, _, line = said.err.rpartition("error: ")  # a word on what was begun may come before
        assert begun.count("\n") <= (arguments[0] == "up"), f"{shown}: {said.err[:300]!r}"
        assert said.err.startswith(begun + "error: "), f"{shown}: {said.err[:300]!r}"
        assert len(said.err) < 3000, f"{shown}: {len(said.err)} characters"
        assert line.count("\n") == 1 or "^" in said.err, f"{shown}: {said.err[:500]!r}"
        assert not [c for c in said.err if ord(c) < 32 and c != "\n"], f"{shown}: {said.err[:300]!r}"
    assert not [p for p in (place / "jobs").rglob("*") if p.is_file()], f"{shown}: something was created"
    return said.err


ITEMS = [
    "", " ", HUGE, "\0", "a\0b.jsonl", "\x1b[31m.jsonl", "\u202e.jsonl", "nowhere.jsonl", "folder.jsonl",
    "folder.jsonl/",
    "pipe.jsonl", "gone.jsonl", "loop.jsonl", "device.jsonl", "/dev/zero", "/proc/self/mem", "good.jsonl/x.jsonl",
    "range:", "range:1", "range:a:b", "range:1:2:0", "range:5:1", "range:0:99999999999999999999", "range:1:2:3:4",
    "range:0:1e3", "range:" + "9" * 5000 + ":1", "range:\u0661:x", "glob:", "glob:nowhere/*.x", "glob:\0", "python:",
    "python:os",
    "python:nowhere_at_all:f", "python:bad_source:number", "python:bad_source:nothing", "python:bad_source:raises",
    "python:bad_source:gives_none", "python:bad_source:breaks_off", "python:bad_source:leaves",
    "python:bad_source:gives_objects", "python:broken_source:f", "python:..:x", "python:a b:c", "job:", "job:../x",
    "job:/etc", "job:" + "x" * 81, "job:j\u00f6b", "job:nothing", "job:nothing?outcome=great", "job:nothing?zebra=1",
    "results:", "results:nothing", "results:../x", "zebra:thing", "http://", "ftp://u:p@h/x.jsonl", "zebra://b/x.jsonl",
    "a::b.jsonl", *(name for name in FILES if name not in NO_ITEMS),
]  # fmt: skip

FLAGS: dict[str, list[str]] = {
    "--deployment": ["", "a", "/", "a/", "/b", "a/b/c", " / ", "a/\x07b", HUGE, "{", "{}", '{"a": 1}', '{"a": "b/c"}',
    "[]",
                     "\0", NESTED, '{"a":' + NESTED + "}"],
    "--batch-size": ["0", "-1", "1.5", "many", "", "9" * 5000, "NaN", "1e3", "\0"],
    "--max-requests-per-minute": ["0", "19", "-1", "x", "", "60.5"],
    "--max-in-flight": ["0", "1001", "-5", "x", "", "1.0", "\u0661x"],
    "--max-bytes": ["0", "-1", "x", ""],
    "--max-weight": ["0", "-1", "nan", "inf", "x", "", "1"],
    "--job-id": ["../x", "/etc/x", "x" * 81, "a b", "j\u00f6b", "a/b", ".", "..", "a\nb", "\0", HUGE],
    "--storage": ["s3://", "s3://me:pw@b/x", "zebra://b/x", "a::b", "\0", "items/under", "memory://x", " ",
    "http://h/x",
                  "good.jsonl", HUGE],
    "--param": ["x", "=1", "a b=1", "1a=2", "", "-=1", "\0=1"],
    "--kill-switch": ["failed >", "faild > 3", "failed", "1", "(" * 50, "failed > 1 or " * 300, "__import__('os')",
    "failed > 'x'",
                      "errors[1] > 2", "failed ** 2 > 1", "failed > 1; failed", "recent_failed_rate() > 1", "\0",
                      "\u202e", HUGE,
                      "failed > " + "9" * 400, "lambda: 1", "failed > 1 if 1 else 2", "True"],
    "--enough-when": ["x", "succeeded >"], "--fail-if": ["x >", "1 +"],
    "--pass-items-as": ["x", "list:", "list:a b", "one:1", "reference:x", HUGE],
    "--on-trip": ["explode", "", "CANCEL"], "--unknown-flag": ["1"],
    "--skip-succeeded-of": ["../x", "nothing"],
}  # fmt: skip


def test_items_of_every_wrong_kind_are_refused_while_planning(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source is read by itself: staging it into a folder that is thrown away."""
    from orchestrator.errors import ConfigurationError
    from orchestrator.store import JobFolder, StageOptions, as_source, stage

    wrong = []
    for text in ITEMS:
        folder = JobFolder(str(place / "staged"))
        with Deadline(20, text[:60]):
            try:
                source = as_source(text, storage=str(place / "jobs"))
                source.describe()
                staged = stage(source, folder, "n", StageOptions(batch_size=10))
            except ConfigurationError as e:
                if "\n" in str(e) or len(str(e)) > 1500:
                    wrong.append(f"{text[:60]!r}: said {str(e)[:300]!r}")
            except Exception as e:
                wrong.append(f"{text[:60]!r}: raised {type(e).__name__}: {str(e)[:300]}")
            else:
                if staged.total:
                    wrong.append(f"{text[:60]!r}: {staged.total} items")
        if [entry.name for entry in folder.store.list() if entry.name.endswith("job.json")]:
            wrong.append(f"{text[:60]!r}: a job was created")
        folder.discard_staging("n")
    assert not wrong, "\n".join(wrong)


def test_wrong_values_of_every_flag_are_refused(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wrong = []
    for name, values in FLAGS.items():
        for value in values:
            base = {"--deployment": "it-work/default", "--items": "good.jsonl", name: value}
            arguments = ["run", *(part for pair in base.items() for part in pair)]
            try:
                check(arguments, place, capfd, (2, 3) if name in ("--skip-succeeded-of", "--storage") else (2,))
            except AssertionError as e:
                wrong.append(str(e).splitlines()[0])
    assert not wrong, "\n".join(wrong)


JOB_COMMANDS = ["status", "stop", "report", "results", "resume", "retry", "scale", "pause", "replay"]
JOB_IDS = [
    "../x",
    "/etc/passwd",
    "x" * 81,
    "",
    " ",
    "j\u00f6b",
    ".",
    "..",
    "a\0b",
    "a\nb",
    "nothing",
    HUGE,
    "-",
    "%2e%2e",
]


def test_wrong_job_ids_are_refused_by_every_command(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wrong = []
    known = set(make_app())
    for command in JOB_COMMANDS:
        if command not in known:
            continue
        more = ["--max-in-flight", "3"] if command == "scale" else []
        for job in JOB_IDS:
            try:
                check([command, "--", job] if job.startswith("-") else [command, job, *more], place, capfd)
            except AssertionError as e:
                wrong.append(str(e).splitlines()[0])
    assert not wrong, "\n".join(wrong)


OTHERS = [
    ["scale", "j"], ["scale", "j", "--max-in-flight", "x"], ["scale", "j", "--max-in-flight", "0"], ["nothing"],
    ["--nothing"],
    ["retry", "j", "--only", "great"], ["results", "j", "--limit", "x"], ["results", "j", "--outcome", "x"],
    ["stop", "j", "--wait", "x"], ["status", "a", "b"], ["up", "--port", "x"], ["up", "--port", "0"], ["up", "--port",
    "70000"],
    ["up", "--prefect-file", "nowhere.yaml"], ["up", "--prefect-file", "yaml.yaml"], ["up", "--prefect-file",
    "list.yaml"],
    ["up", "--prefect-file", "pipe.yaml"], ["up", "--prefect-file", "."], ["up", "--prefect-file", "/dev/zero"],
    ["up", "--home", "items"], ["up", "--stop", "nowhere"], ["up", "--limit", "x"], ["deploy", "--job-variable", "x"],
    ["deploy", "--job-variable", "=1"], ["doctor", "--max-in-flight", "x"], ["status", "--storage", "zebra://x"],
    ["status", "--storage", "a::b"], ["report", "j", "--storage", "s3://me:pw@b"],
    *(["plan", *WORK, "--items", "good.jsonl", *flags] for flags in (
        ["--requests-per-minute", "0"], ["--requests-per-minute", "x"], ["--batch-seconds", "0"],
        ["--batch-seconds", "nan"])),
]  # fmt: skip


@pytest.mark.parametrize("arguments", OTHERS, ids=lambda arguments: " ".join(arguments))
def test_other_commands_refuse_what_is_wrong(
    place: Path, capfd: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    check(arguments, place, capfd)


@pytest.mark.parametrize(
    ("name", "value"),
    [("BEAT_SECONDS", "x"), ("LEASE_SECONDS", "1"), ("POLL_SECONDS", "-1"), ("RESULT_MAX_BYTES", "1e99"),
     ("FENCE_SECONDS", "nan"), ("SUBMIT_CONCURRENCY", "")],
)  # fmt: skip
def test_wrong_settings_are_named(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"ORCHESTRATOR_{name}", value)
    assert f"ORCHESTRATOR_{name}" in check(["run", *WORK, "--items", "good.jsonl"], place, capfd)


QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=QUIET)
@given(text=st.text(max_size=200), flag=st.sampled_from([*FLAGS, "--items"]))
@example(text="0\n0", flag="--items")
def test_any_text_as_any_flag_is_taken_or_refused_in_one_line(
    place: Path, capfd: pytest.CaptureFixture[str], text: str, flag: str
) -> None:
    base = {"--deployment": "it-work/default", "--items": "good.jsonl", flag: text}
    check(["plan", *(part for pair in base.items() for part in pair)], place, capfd, (2, 3))


@pytest.mark.campaign
@settings(max_examples=5000, deadline=None, suppress_health_check=QUIET)
@given(text=st.text(max_size=200), flag=st.sampled_from([*FLAGS, "--items"]))
def test_many_texts_as_any_flag_are_taken_or_refused_in_one_line(
    place: Path, capfd: pytest.CaptureFixture[str], text: str, flag: str
) -> None:
    base = {"--deployment": "it-work/default", "--items": "good.jsonl", flag: text}
    check(["plan", *(part for pair in base.items() for part in pair)], place, capfd, (2, 3))


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["failed", "failed_rate", "errors", "[", "]", '"E"', "(", ")", ">", ">=", "==", "and", "or", "not", "+",
            "/", "0",
             "1e9", "9" * 50, ".", ",", "recent_failed_rate", "stalled", "\n", "#", "'", "**", "if", "\u202e"]
        ),
        max_size=40,
    )
)  # fmt: skip
def test_any_kill_switch_parses_or_points_at_the_place(words: list[str]) -> None:
    from orchestrator.core.killswitch import parse
    from orchestrator.errors import ExpressionError

    try:
        switch = parse(" ".join(words))
    except ExpressionError as e:
        assert "^" in str(e)  # noqa: PT017 - either of both may happen
    else:
        assert str(parse(str(switch))) == str(switch)


def test_the_program_itself_ends_in_the_same_way(place: Path) -> None:
    for arguments in (
        ["run", *WORK, "--items", "good.jsonl", "--batch-size", "1.5"],
        ["status", "../x"],
        ["plan", *WORK, "--items", "range:a:b"],
    ):
        environment = {**os.environ, "PREFECT_API_URL": ""}
        done = subprocess.run([sys.executable, "-m", "orchestrator", *arguments], cwd=place, env=environment,
                              capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
