"""What a terminal is told: results on stdout, progress and remarks on stderr, errors as one line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console

from orchestrator.engine.masking import mask
from orchestrator.errors import OrchestratorError

_LINE_CHARS = 2000
INTERRUPTED = 130  # what shells say of a program that Ctrl-C ended


def stderr() -> Console:
    """The console for people; made at each call, so that it follows a redirected `sys.stderr`."""
    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def say(text: str = "") -> None:
    """A remark for people, on stderr."""
    stderr().print(text, markup=False)


def plain(text: str) -> str:
    """Text of items and errors, fit for one line of a terminal: what does not print is shown as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def give(text: str) -> None:
    """A line of the result, on stdout."""
    sys.stdout.write(text + "\n")


def give_json(data: Any) -> None:
    """The result as JSON, on stdout."""
    give(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def give_json_line(data: Mapping[str, Any]) -> None:
    give(json.dumps(data, ensure_ascii=False, default=str))


def error_line(error: BaseException) -> str:
    """One line (a caret under an expression excepted) that says what is wrong and what to do."""
    if isinstance(error, OrchestratorError):
        lines = masked(str(error)).split("\n")  # a caret under an expression comes on lines of its own
        return "error: " + "\n".join(plain(line)[:_LINE_CHARS] for line in lines)
    text = " ".join(masked(str(error)).split())[:500]
    hint = "" if os.environ.get("ORCHESTRATOR_DEBUG") else " (ORCHESTRATOR_DEBUG=1 shows where)"
    return f"error: unexpected {type(error).__name__}: {text}{hint}"


def masked(text: str) -> str:
    """The text without secrets; by hand, for the settings themselves may be what is wrong."""
    names = os.environ.get("ORCHESTRATOR_MASKED_ENV", "").split(",")
    return mask(text, tuple(name.strip() for name in names))


def table(rows: Iterable[tuple[str, ...]], head: tuple[str, ...] = ()) -> str:
    """Columns of text, aligned by spaces, numbers to the right; no trailing blanks."""
    all_rows = [head, *rows] if head else list(rows)
    if not all_rows:
        return ""
    widths = [max(len(row[i]) for row in all_rows) for i in range(len(all_rows[0]))]
    lines = []
    for row in all_rows:
        cells = [
            cell.rjust(width)
            if cell[:1].isdigit() and cell.replace(",", "").replace(".", "").isdigit()
            else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
