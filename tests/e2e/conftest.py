"""What tests of the command line share: the program as a subprocess, a client of the shared stack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.stack import Stack
from tests.integration.job_support import deploy_work

Start = Callable[..., "subprocess.Popen[str]"]
PROGRAM = [sys.executable, "-m", "orchestrator"]


@dataclass
class Done:
    """A program that ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Program:
    """`orchestrator` as its users call it: a process with a stack's environment and a storage of the test's own."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.folder, self.storage = folder, folder / "jobs"
        self.environment = environment | {"ORCHESTRATOR_STORAGE": str(self.storage)}

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*PROGRAM, *arguments], env=self.environment, cwd=self.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
        )  # fmt: skip

    def __call__(self, *arguments: str, stdin: str | None = None, deadline_seconds: float = 120) -> Done:
        process = self.start(*arguments, stdin=subprocess.PIPE)
        try:
            out, err = process.communicate(stdin or "", timeout=deadline_seconds)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        return Done(process.returncode, out, err)


@pytest.fixture(scope="module")
def work(session_stack: Stack) -> str:
    """A batch deployment whose items do what they say."""
    with session_stack.activated():
        return deploy_work()


@pytest.fixture
def program(session_stack: Stack, tmp_path: Path) -> Program:
    return Program(session_stack.environment, tmp_path)


@pytest.fixture
def lonely(tmp_path: Path) -> Program:
    """The program where no Prefect server is configured."""
    return Program(dict(os.environ), tmp_path)


def write_items(path: Path, items: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path
