"""A reader who goes through a page from top to bottom, in a folder of their own, and does what it says.

* A block that begins with `# name` (a comment with a file name) is saved as that file.
* Any other `python` block is run as a program.
* Each line of a `bash` block is run as a command; `export` and `cd` hold for the lines after them. What runs until
  Ctrl-C is left running until the end of the page.
* A `text` block shows what the commands just before it print: its lines are there in this order; `...` stands for
  anything. A `json` block after commands shows the shape of what they print: the same fields in the same places.
* An `expression` block holds one kill switch a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.docs.pages import Block
from tests.support import eventually

SECONDS = 300.0
"""For one command; generous, because tests share the machine."""

NOT_RUN = {
    "make demo": "takes minutes; tests/e2e run `orchestrator demo` itself",
    "make test": "this test is part of it",
    "make bench": "takes minutes; benchmarks/README.md keeps what it printed",
    "docker build -f docker/Dockerfile": "done: the tests build that image by the same command",
    "pip install": "done: the program and the library come from a wheel of this checkout, installed without an index",
}
"""Commands that the reader passes over, by how they begin, each with its reason."""

UNTIL_STOPPED = {
    "orchestrator up": "Ctrl-C stops it",
    "prefect worker start": "started!",
    "python serve.py": "being served",
    "redis-server": "Ready to accept connections",
    "python deployments/services/pages.py": "serving",
    "python deployments/services/thumbnails.py": "serving",
}
"""Commands that run until Ctrl-C, and what they print when they are ready."""

_FILE = re.compile(r"# (?P<name>[\w./-]+\.(?:py|yaml|toml|txt|csv|jsonl)|Dockerfile)\n")


def commands(block: Block) -> list[str]:
    """The commands of a `bash` block: lines, joined where they end with a backslash, without comments."""
    lines = re.sub(r"\\\n\s*", "", block.text).splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def file_name(block: Block) -> str | None:
    """The file that a block is to be saved as; None when it is none."""
    match = _FILE.match(block.text)
    return match["name"] if match else None


@dataclass
class Reader:
    """Reads one page.

    Args:
        folder: Where the reader works: outside of this repository.
        environment: What the reader's terminal has; PATH leads to an installed package.
        instead: Texts of the page -> what the reader types in their place (a port that may be taken).
    """

    folder: Path
    environment: dict[str, str]
    instead: Mapping[str, str] = field(default_factory=dict)
    output: str = ""
    _left_running: list[tuple[subprocess.Popen[bytes], Path]] = field(default_factory=list)

    def read(self, block: Block) -> None:
        """Do what a block says.

        Raises:
            AssertionError: it does not do what the page says.
        """
        text = block.text
        for shown, typed in self.instead.items():
            text = text.replace(shown, typed)
        block = Block(block.page, block.line, block.language, text)
        if (name := file_name(block)) is not None:
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
            if name.endswith(".py"):
                compile(text, name, "exec")
        elif block.language == "python":
            self.output = self._run([str(self._program("python")), "-c", text])
        elif block.language == "bash":
            self.output = "".join(self.command(line) for line in commands(block))
        elif block.language == "text":
            self._compare(text)
        elif block.language == "json":
            shape(json.loads(text), json.loads(self.output))
        elif block.language == "expression":
            self._parse(text)
        else:
            raise AssertionError(f"{block}: nobody can run this")

    def command(self, line: str) -> str:
        """Run one command line; what it printed."""
        words = shlex.split(line, comments=True)
        if line.startswith("export "):
            for word in words[1:]:
                name, _, value = word.partition("=")
                self.environment[name] = os.path.expandvars(value.replace("$PWD", str(self.folder)))
            return ""
        if words[0] == "cd":
            self.folder = self.folder / words[1]
            return ""
        if passed_over(line) is not None:
            return ""
        if (ready := until_stopped(line)) is not None:
            self._leave_running(line, ready)
            return ""
        return self._run(["bash", "-eu", "-c", line], allowed=_exit_codes(line))

    def stop(self) -> None:
        """Ctrl-C for everything that was left running, the newest first."""
        for process, _ in reversed(self._left_running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._left_running.clear()

    def _run(self, command: list[str], allowed: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True,
                              timeout=SECONDS, check=False, stdin=subprocess.DEVNULL)  # fmt: skip
        said = f"{done.stdout}\n{done.stderr}"
        assert done.returncode in allowed, f"{command[-1]!r} ended with {done.returncode}:\n{said}{self._logs()}"
        return done.stdout if done.stdout.lstrip().startswith(("{", "[")) else said

    def _leave_running(self, line: str, ready: str) -> None:
        log = self.folder / f"left-running-{len(self._left_running)}.log"
        with log.open("wb") as out:
            words = shlex.split(line, comments=True)
            process = subprocess.Popen([str(self._program(words[0])), *words[1:]], cwd=self.folder,
                                       env=self.environment, stdin=subprocess.DEVNULL, stdout=out,
                                       stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        self._left_running.append((process, log))

        def up() -> bool:
            said = log.read_text(errors="replace")
            assert process.poll() is None, f"{line!r} ended with {process.returncode}:\n{said}"
            return ready in said

        eventually(up, SECONDS, f"{line!r} to say {ready!r}")

    def _program(self, name: str) -> Path:
        for folder in self.environment["PATH"].split(os.pathsep):
            if (Path(folder) / name).exists():
                return Path(folder) / name
        return Path(sys.executable)

    def _compare(self, shown: str) -> None:
        rest = self.output
        for line in filter(None, (line.strip() for line in shown.splitlines())):
            pattern = r"[ \t]*".join(
                ".*".join(re.escape(part) for part in word.split("...")) for word in re.split(r"[ \t]+", line)
            )
            match = re.search(pattern, rest)
            assert match, f"{line!r} is not printed (or not in this place) by:\n{self.output}"
            rest = rest[match.end() :]

    def _parse(self, text: str) -> None:
        from orchestrator.core.killswitch import parse

        for line in filter(None, text.splitlines()):
            parse(line)  # or it raises, with a caret under the place

    def _logs(self) -> str:
        return "".join(f"\n--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for _, log in self._left_running)


def passed_over(line: str) -> str | None:
    """Why a command is not run; None when it is."""
    return next((why for begin, why in NOT_RUN.items() if line.startswith(begin)), None)


def until_stopped(line: str) -> str | None:
    """What a command that runs until Ctrl-C prints when it is ready; None for any other."""
    return next((ready for begin, ready in UNTIL_STOPPED.items() if line.startswith(begin)), None)


def _exit_codes(line: str) -> tuple[int, ...]:
    """The exit codes that a line may end with; a comment `# ends with N` says another one than 0."""
    match = re.search(r"# ends with (\d+)", line)
    return (int(match[1]),) if match else (0,)


def shape(shown: Any, real: Any, where: str = "$") -> None:
    """The page's JSON has the fields of the real one, at every depth.

    Raises:
        AssertionError: they differ.
    """
    if isinstance(shown, dict):
        assert isinstance(real, dict), f"{where} is {real!r}"
        free = where.endswith((".at", ".spec"))
        assert free or set(shown) == set(real), f"{where}: {sorted(set(shown) ^ set(real))} only on one side"
        for name in set(shown) & set(real):
            shape(shown[name], real[name], f"{where}.{name}")
    elif isinstance(shown, list) and shown and isinstance(real, list) and real:
        shape(shown[0], real[0], f"{where}[0]")
