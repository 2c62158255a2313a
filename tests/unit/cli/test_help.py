"""What `--help` says, for every command."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from orchestrator.cli.app import make_app, run

COMMANDS = (
    "deploy", "up", "demo", "plan", "run", "status", "stop", "resume", "report", "results", "doctor",
    "retry", "scale", "pause", "cleanup", "replay",
)  # fmt: skip
INSIDE = ("fence", "lease", "tally", "reactor", "gateway", "epoch")


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    words = capsys.readouterr().out.split()
    assert set(COMMANDS) <= set(words)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_flag_has_words_and_names_its_environment_variable(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command, "--help"]) == 0
    text = capsys.readouterr().out
    flags = re.findall(r"^│ \*? *(--[a-z-]+) (.*)│$", text, re.MULTILINE)
    assert flags
    for name, words in flags:
        assert re.search(r"\[env var: ORCHESTRATOR_[A-Z_]+\]", words), f"{command} {name} names no variable"
        assert len(words.split("[")[0].split()) > 2, f"{command} {name} says nothing"
    assert not [word for word in INSIDE if re.search(rf"\b{word}", text, re.IGNORECASE)]


def test_a_flag_is_read_from_its_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_BATCH_SIZE", "7")
    monkeypatch.setenv("ORCHESTRATOR_BATCH_DEPLOYMENT", "a/b")
    _, bound, _ = make_app().parse_args(["plan", "--items", "range:0:3"], exit_on_error=False)
    flags = bound.arguments["flags"]
    assert (flags.batch_size, flags.deployment, flags.items) == (7, "a/b", "range:0:3")


def test_the_program_says_help_without_importing_prefect() -> None:
    program = (
        "import sys; from orchestrator.cli.app import run; run(['run', '--help']); assert 'prefect' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_python_m_orchestrator_is_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "--version"], check=True, capture_output=True, text=True
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", done.stdout)
