"""Measure Python source files: the demo's batch flow, on the files of this machine's own Python installation.

Some of those files do not parse on purpose (they test the parser): real failures among thousands of successes.
"""

from __future__ import annotations

import ast
import io
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.flows import batch_flow

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = (*_FUNCTIONS, ast.ClassDef, ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try,
           ast.TryStar, ast.Match)  # fmt: skip
_LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
           tokenize.ENDMARKER}  # fmt: skip


def measure(path: str) -> dict[str, Any]:
    """Measure Python source files.

    Args:
        path: One file.

    Returns:
        Its numbers: lines, lines of code and with comments, functions, classes, deepest nesting, longest function.

    Raises:
        OSError, SyntaxError, UnicodeDecodeError, ValueError: the file cannot be read or is not Python.
    """
    source = Path(path).read_bytes()
    with warnings.catch_warnings():  # odd escapes in other people's strings are none of our business
        warnings.simplefilter("ignore")
        tree = ast.parse(source, filename=path)
    code, comments = _line_counts(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, _FUNCTIONS)]
    longest = max(functions, key=_length, default=None)
    return {
        "path": path,
        "bytes": len(source),
        "lines": source.count(b"\n") + (not source.endswith(b"\n") and bool(source)),
        "code_lines": code,
        "comment_lines": comments,
        "functions": len(functions),
        "classes": sum(isinstance(node, ast.ClassDef) for node in ast.walk(tree)),
        "max_nesting": _nesting(tree),
        "longest_function": {"name": longest.name, "lines": _length(longest)} if longest else None,
    }


source_metrics = batch_flow(measure, name="source-metrics")


def python_files(limit: int | None = None) -> Iterator[str]:
    """Paths of this Python's standard library, its tests included, sorted: an item source for the demo.

    Name it `python:deployments.source_metrics:python_files`.

    Args:
        limit: At most so many of them; None for all.
    """
    library = Path(sysconfig.get_path("stdlib"))
    found = sorted(str(path) for path in library.rglob("*.py") if "site-packages" not in path.parts)
    yield from found[:limit]


def _line_counts(source: bytes) -> tuple[int, int]:
    """Lines that hold code, and lines that hold a comment."""
    code: set[int] = set()
    comments: set[int] = set()
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in _LAYOUT:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code), len(comments)


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def _nesting(tree: ast.AST) -> int:
    """Depth of the deepest block; without recursion, because generated code nests deeper than Python's stack."""
    deepest, left = 0, [(tree, 0)]
    while left:
        node, depth = left.pop()
        depth += isinstance(node, _BLOCKS)
        deepest = max(deepest, depth)
        left.extend((child, depth) for child in ast.iter_child_nodes(node))
    return deepest


if __name__ == "__main__":
    source_metrics(items=list(python_files(100)))
