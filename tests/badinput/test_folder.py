"""Job folders that somebody damaged: every reader gives a clear error or a result that adds up, and never hangs."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.cli.app import run
from orchestrator.core.model import ItemOutcome
from orchestrator.engine.memory import SimulatedEngine
from orchestrator.engine.virtual import run as run_virtually
from orchestrator.errors import OrchestratorError
from orchestrator.store import JobFolder
from orchestrator.testing import SimulatedBatches, simulate, take_over_on
from tests.badinput.watch import Deadline

TOTAL, JOB = 24, "j"


def work(item: int) -> int:
    if item % 7 == 3:
        raise ValueError(f"item {item} is bad")
    return item * 2


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A job that is over, and one whose parent and runs died half-way."""
    root = tmp_path_factory.mktemp("templates")
    for name in ("over", "half"):
        simulate(
            work, range(TOTAL), batch_size=4, max_in_flight=3, job_id=JOB, storage=str(root / name), kill_switch=None
        )
    half = root / "half" / JOB
    (half / "report.json").unlink()
    for batch in (2, 3):
        (half / f"b/{batch}/a0.end").unlink()
        log = half / f"b/{batch}/a0.jsonl"
        log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:3]))
    for batch in (4, 5):
        shutil.rmtree(half / f"b/{batch}")
    return {name: root / name for name in ("over", "half")}


# ------------------------------------------------------------------ what may be done to a folder


def objects(folder: Path) -> list[Path]:
    """Plain files alone: damage done to a link would be done to what it leads to."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 1, 5])):
        if data:
            data[chance.randrange(len(data))] = chance.choice([0, 10, 34, 44, 48, 57, 92, 123, 125, 255])
    path.write_bytes(bytes(data))


def cut(path: Path, chance: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: chance.randrange(len(data) + 1)])


def drop_line(path: Path, chance: random.Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    if lines:
        del lines[chance.randrange(len(lines))]
    path.write_bytes(b"".join(lines))


def shuffle_lines(path: Path, chance: random.Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    chance.shuffle(lines)
    path.write_bytes(b"".join(lines))


def double_line(path: Path, chance: random.Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    if lines:
        lines.insert(chance.randrange(len(lines)), chance.choice(lines))
    path.write_bytes(b"".join(lines))


def number(path: Path, chance: random.Random) -> None:
    """Another number for one that stands there."""
    import re

    data = path.read_bytes()
    found = list(re.finditer(rb"(?<![\w.])\d+(?![\w.])", data))
    if found:
        place = chance.choice(found)
        value = chance.choice([b"-1", b"0", b"3", b"999999999999999999999", b"1e999", b"1.5", b"null", b'"x"'])
        path.write_bytes(data[: place.start()] + value + data[place.end() :])


def nonsense(path: Path, chance: random.Random) -> None:
    path.write_bytes(
        chance.choice(
            [b"", b"null", b"[]", b"{}", b'{"format":1}', b'{"format":2}', b"\xff\xfe", b"[" * 100_000, b"\n" * 50]
        )
    )


def delete(path: Path, chance: random.Random) -> None:
    path.unlink()


def swap(path: Path, chance: random.Random) -> None:
    other = chance.choice(objects(path.parents[2] if "b" in path.parts else path.parent))
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def replace_by(make: Callable[[Path], Any]) -> Callable[[Path, random.Random], None]:
    def change(path: Path, chance: random.Random) -> None:
        path.unlink()
        make(path)

    change.__name__ = f"replace by {make.__name__}"
    return change


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    (path / "x").mkdir(parents=True)


OUTSIDE = Path(tempfile.gettempdir()) / f"orchestrator-badinput-{os.getpid()}"
"""A file that no job folder has any business with; of the tests' own, because a link may be written through."""
SECRET = "root:x:0:0\n"
atexit.register(OUTSIDE.unlink, missing_ok=True)


def a_link_out(path: Path) -> None:
    OUTSIDE.write_text(SECRET)
    path.symlink_to(OUTSIDE)


def a_link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_dead_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def a_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket is at most 100 bytes
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(path.name)
    finally:
        os.chdir(here)


def a_device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero
    except OSError:
        a_link_to_a_device(path)


SPECIAL = [a_pipe, a_folder, a_link_out, a_link_to_a_device, a_dead_link, a_link_to_itself, a_socket, a_device]
DAMAGES = [
    flip, cut, drop_line, shuffle_lines, double_line, number, nonsense, delete, swap, *map(replace_by, SPECIAL),
]  # fmt: skip


# ------------------------------------------------------------------ the readers and their law


def succeeded(folder: Path) -> set[int] | None:
    """The items that a reader says succeeded; None when it says that it cannot be read."""
    try:
        records = list(JobFolder(str(folder)).outcomes())
    except OrchestratorError as e:
        assert "\n" not in str(e)  # noqa: PT017 - either of both may happen
        return None
    words = Counter(r.outcome for r in records)
    assert [r.index for r in records] == list(range(len(records)))
    assert sum(words.values()) == len(records)
    return {r.index for r in records if r.outcome is ItemOutcome.SUCCEEDED}


def commands_keep_the_law(storage: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["status", JOB], ["report", JOB], ["results", JOB, "--outcome", "all"], ["status"],
    ):  # fmt: skip
        code = run([*arguments, "--storage", str(storage)])
        said = capfd.readouterr()
        assert code in (0, 1, 2, 3, 4), (arguments, code, said.err[-2000:])
        assert "Traceback" not in said.err
        assert "unexpected" not in said.err, (arguments, said.err)
        if code in (2, 3):
            assert said.err.startswith("error: ")
            assert said.err.count("\n") == 1, said.err
    code = run(["results", JOB, "--outcome", "all", "--json", "--storage", str(storage)])
    assert "unexpected" not in capfd.readouterr().err
    assert code in (0, 2, 3)


def resume_keeps_the_law(storage: Path) -> None:
    """A resume in virtual time: nothing that counts as succeeded runs again, and what it reports adds up."""
    folder = storage / JOB
    done = succeeded(folder)
    ran: list[int] = []

    def again(item: int) -> int:
        ran.append(item)
        return work(item)

    try:
        total = JobFolder(str(folder)).read_job().total
        ended = run_virtually(_taken_over(again, str(storage)))
    except OrchestratorError as e:
        assert "\n" not in str(e)  # noqa: PT017 - either of both may happen
        return
    n = ended.report.items
    assert n.succeeded + n.failed + n.unknown + n.not_started == n.total == total
    if done is not None:
        # An item's value is its index, unless the staged items themselves were altered: those are not run at all.
        assert not done & set(ran)
    after = succeeded(folder)
    assert after is None or done is None or done <= after


async def _taken_over(process: Callable[[int], int], storage: str) -> Any:
    return await take_over_on(SimulatedEngine(SimulatedBatches(process)), JOB, storage)


def damaged(template: Path, place: Path, seed: int, how: list[int]) -> Path:
    """A copy of a job folder with some damage."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(template, place)
    chance = random.Random(seed)
    for number_ in how:
        there = objects(place / JOB)
        if there:
            DAMAGES[number_](chance.choice(there), chance)
    return place


def test_damage_is_done_to_the_folder_and_to_nothing_that_a_link_in_it_leads_to(
    templates: dict[str, Path], tmp_path: Path
) -> None:
    link = next(n for n, damage in enumerate(DAMAGES) if damage.__name__ == "replace by a_link_out")
    writers = [DAMAGES.index(damage) for damage in (swap, flip, cut, number, nonsense)]
    for seed in range(10):
        damaged(templates["half"], tmp_path / "c", seed, [link] * 15 + writers * 10)
        assert OUTSIDE.read_text() == SECRET


def check_damage(
    templates: dict[str, Path], place: Path, which: str, seed: int, how: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    storage = damaged(templates[which], place, seed, how)
    with Deadline(60, f"{which} {seed} {[DAMAGES[n].__name__ for n in how]}"):
        succeeded(storage / JOB)
        commands_keep_the_law(storage, capfd)
        resume_keeps_the_law(storage)


SEEDS = st.integers(0, 2**32)
HOW = st.lists(st.integers(0, len(DAMAGES) - 1), min_size=1, max_size=4)
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for signs of life of a parent that is long gone."""
    monkeypatch.setenv("ORCHESTRATOR_BEAT_SECONDS", "0.05")
    monkeypatch.setattr("orchestrator.cli.looking.parent_is_alive", lambda folder, beat: folder.read_lease() is None)


@pytest.mark.usefixtures("impatient")
@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=QUIET)
@given(which=st.sampled_from(["over", "half"]), seed=SEEDS, how=HOW)
def test_readers_of_a_damaged_folder_keep_the_law(
    templates: dict[str, Path], tmp_path: Path, which: str, seed: int, how: list[int],
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    check_damage(templates, tmp_path / "c", which, seed, how, capfd)


@pytest.mark.campaign
@pytest.mark.usefixtures("impatient")
@pytest.mark.timeout(7200)
@settings(max_examples=3000, deadline=None, suppress_health_check=QUIET)
@given(which=st.sampled_from(["over", "half"]), seed=SEEDS, how=HOW)
def test_readers_of_many_damaged_folders_keep_the_law(
    templates: dict[str, Path], tmp_path: Path, which: str, seed: int, how: list[int],
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    check_damage(templates, tmp_path / "c", which, seed, how, capfd)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("make", SPECIAL, ids=lambda make: make.__name__)
def test_nobody_waits_for_what_is_no_plain_file(
    templates: dict[str, Path], tmp_path: Path, make: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """Every name of the layout, each of them another thing than a file."""
    names = [
        "job.json", "lease.json", "report.json", "stop.json", "epoch/2.json", "control/1.json", "b/2/a0.jsonl",
        "b/2/a0.end", "b/2/a0.revoked", "b/2/a1.jsonl", "b/4/a0.jsonl", "b/0/a0.end", "b/5/a0.1.jsonl",
    ]  # fmt: skip
    for name in names:
        storage = tmp_path / "c"
        shutil.rmtree(storage, ignore_errors=True)
        shutil.copytree(templates["half"], storage)
        path = storage / JOB / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        make(path)
        with Deadline(60, f"{make.__name__} at {name}"):
            commands_keep_the_law(storage, capfd)
            resume_keeps_the_law(storage)
    assert not OUTSIDE.exists() or OUTSIDE.read_text() == SECRET


@pytest.mark.usefixtures("impatient")
def test_hostile_names_in_a_folder_are_passed_over(
    templates: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    storage = tmp_path / "c"
    shutil.copytree(templates["over"], storage)
    for name in (
        "b/1/a0.end.tmp", "b/1/" + "x" * 200, "b/..b/x", "b/-1/a0.end", "b/1/a99999999999.end", "b/1/\n.end",
        "b/1/a0.\u0661.jsonl", "b/99/a0.end", "items/x", "control/\u0661.json", "epoch/../../x", "b/1/\ud800",
    ):  # fmt: skip
        path = storage / JOB / name
        path.parent.mkdir(exist_ok=True, parents=True)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(os.fsencode(path) if "\ud800" not in name else bytes(path.parent) + b"/\xff\xfe", "wb") as file:
            file.write(b"?")
    before = succeeded(templates["over"] / JOB)
    assert succeeded(storage / JOB) == before
    commands_keep_the_law(storage, capfd)


def test_damaged_records_are_said_and_their_items_unknown(templates: dict[str, Path], tmp_path: Path) -> None:
    storage = tmp_path / "c"
    shutil.copytree(templates["half"], storage)
    log = storage / JOB / "b/2/a0.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0] + b"?" * 40 + b"\n" + lines[2])
    (storage / JOB / "stop.json").write_text('{"format":1,"mode":"cancel","reason":"enough of it","who":"a test"}')
    report = run_virtually(_taken_over(work, str(storage))).report
    assert [note for note in report.notes if "a damaged record in batch 3 could not be read" in note]
    outcomes = [r.outcome.value for r in JobFolder(str(storage / JOB)).outcomes()]
    assert outcomes[8:12].count("unknown") == 3


def test_items_that_were_altered_cost_one_run_and_the_report_says_why(tmp_path: Path) -> None:
    storage = str(tmp_path)
    runs: list[int] = []

    async def whole() -> Any:
        from orchestrator.testing import simulate_on

        class Altering(SimulatedBatches):
            async def __call__(self, run: Any) -> Any:
                runs.append(run.reference.attempt)
                part = tmp_path / JOB / run.reference.part
                part.write_bytes(part.read_bytes().replace(b"3", b"4"))
                return await super().__call__(run)

        return await simulate_on(SimulatedEngine(Altering(work)), range(4), job_id=JOB, storage=storage)

    report = run_virtually(whole()).report
    assert runs == [0]
    assert (report.items.not_started, report.batches.crashed) == (4, 1)
    assert [note for note in report.notes if "changed after the job was staged" in note]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("before", "after"),
    [('"succeeded":', '"succeeded":-'), ('"total":24', '"total":25'), ('"seconds":', '"seconds":"x","y":')],
)
def test_a_report_whose_numbers_cannot_be_is_not_believed(
    templates: dict[str, Path], tmp_path: Path, before: str, after: str, capfd: pytest.CaptureFixture[str]
) -> None:
    storage = tmp_path / "c"
    shutil.copytree(templates["over"], storage)
    report = storage / JOB / "report.json"
    report.write_text(report.read_text().replace(before, after, 1))
    assert run(["report", JOB, "--storage", str(storage)]) == 2
    assert "damaged" in capfd.readouterr().err
    resume_keeps_the_law(storage)
