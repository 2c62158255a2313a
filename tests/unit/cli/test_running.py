"""Flags as a request, interrupts, and what progress looks like; no Prefect."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from orchestrator.cli.app import run
from orchestrator.cli.options import JobFlags
from orchestrator.cli.progress import LiveProgress, counts, flying, pace
from orchestrator.cli.running import LeftError, deployment_of, parameters_of, request_of, stoppable
from orchestrator.cli.terminal import say
from orchestrator.core.model import Failure, StopMode
from orchestrator.errors import ConfigurationError, StoreUnavailableError
from orchestrator.reactor.view import JobView
from orchestrator.store import JobFolder

VIEW = JobView(
    job_id="nightly", total=1200, succeeded=800, failed=3, unknown=0, not_started=0, batches_total=12,
    batches_settled=8, batches_by_outcome={"completed": 8}, in_flight={"Running": 3, "Pending": 1}, seconds=75.0,
    rate=10.0, eta_seconds=39.7, first_failure=Failure(4, "d.mp4", "ValueError", "no [frames]"),
)  # fmt: skip


def test_only_the_flags_that_were_given_become_parameters() -> None:
    flags = JobFlags(deployment="a/b", items="x.csv", param=["width=200", "mode=fast"], tag=["t"], batch_size=5)
    assert request_of(flags) == {
        "deployment": "a/b",
        "items": "x.csv",
        "batch_size": 5,
        "parameters": {"width": 200, "mode": "fast"},
        "tags": ["t"],
    }


def test_values_of_parameters_are_json_where_they_are_json() -> None:
    assert parameters_of(["a=1", "b=true", 'c={"d": [1]}', "e=x=y", "f=", 'g="1"']) == {
        "a": 1, "b": True, "c": {"d": [1]}, "e": "x=y", "f": "", "g": "1",
    }  # fmt: skip
    for bad in ("a", "=1", "a b=1"):
        with pytest.raises(ConfigurationError, match="NAME=VALUE"):
            parameters_of([bad])


def test_deployment_may_be_a_mapping_of_groups() -> None:
    assert deployment_of('{"eu": "a/b", "*": "a/c"}') == {"eu": "a/b", "*": "a/c"}
    for bad in (None, "", "{", '{"eu": 1}'):
        with pytest.raises(ConfigurationError, match="deployment"):
            deployment_of(bad)


def _interrupt_soon(times: int = 1) -> None:
    def send() -> None:
        for _ in range(times):
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send, daemon=True).start()


def test_the_first_interrupt_writes_a_stop_and_waits_for_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = JobFolder(str(tmp_path))

    def work() -> str:
        while folder.read_stop() is None:
            time.sleep(0.01)
        return "report"

    _interrupt_soon()
    assert stoppable(work, lambda: folder) == "report"
    stop = folder.read_stop()
    assert stop is not None
    assert stop.mode is StopMode.CANCEL
    assert "stopping the job" in capsys.readouterr().err


@pytest.mark.parametrize("silent", [False, True], ids=["raises", "does not answer"])
def test_an_interrupt_while_the_storage_is_away_is_written_as_soon_as_it_is_back(
    silent: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.cli.running.STOP_SECONDS", 0.2)
    folder, over, tries = JobFolder(str(tmp_path)), threading.Event(), 0

    def away() -> JobFolder:
        nonlocal tries
        tries += 1
        if tries == 1:
            if silent:
                over.wait(20)
            raise StoreUnavailableError("the disk is full")
        return folder

    def work() -> str:
        while folder.read_stop() is None:
            time.sleep(0.01)
        return "report"

    _interrupt_soon()
    assert stoppable(work, away) == "report"
    over.set()
    assert "the stop cannot be written yet" in capsys.readouterr().err


def test_the_second_interrupt_leaves(tmp_path: Path) -> None:
    over = threading.Event()
    _interrupt_soon(times=2)
    with pytest.raises(LeftError, match="status") as left:
        stoppable(lambda: over.wait(30), lambda: JobFolder(str(tmp_path)))
    over.set()
    assert left.value.exit_code == 130


def test_an_interrupt_before_the_job_exists_just_leaves() -> None:
    over = threading.Event()
    _interrupt_soon()
    with pytest.raises(LeftError, match="before the job was created"):
        stoppable(lambda: over.wait(30), lambda: None)
    over.set()


def test_handlers_are_as_before_afterwards_and_errors_come_through() -> None:
    before = signal.getsignal(signal.SIGINT)

    def fails() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        stoppable(fails, lambda: None)
    assert signal.getsignal(signal.SIGINT) is before


def test_progress_in_words() -> None:
    assert counts(VIEW) == "1,200 items: 800 succeeded, 3 failed"
    assert flying(VIEW) == "batches 8 of 12 over; in flight: 1 Pending, 3 Running"
    assert pace(VIEW) == "10.0 items/s, 40 s left, 1 min 15 s so far"


def test_progress_off_a_terminal_is_a_line_now_and_then_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveProgress() as progress:
        for _ in range(5):
            progress(VIEW)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["job nightly", f"{counts(VIEW)}; {flying(VIEW)}; {pace(VIEW)}"]


def test_progress_on_a_terminal_is_one_block_that_is_redrawn_and_removed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with LiveProgress() as progress:
        progress(VIEW)
        progress(VIEW)
    out, err = capsys.readouterr()
    assert out == ""
    assert "67%" in err
    assert "first failure: item 4 (d.mp4): ValueError: no [frames]" in err


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (["up", "--port", "99999999"], "port"),
        (["up", "--home", "FILE"], "home"),
        (["up", "--prefect-file", "BINARY"], "prefect_file"),
        (["run", "--deployment", "a/b\n", "--items", "range:0:1"], "deployment"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    flags: list[str], field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("no folder")
    (tmp_path / "BINARY").write_bytes(bytes(range(256)))
    assert run([*flags]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"error: {field}: ")


def test_a_remark_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    say("range:a:b [bold]")
    assert capsys.readouterr().err == "range:a:b [bold]\n"
