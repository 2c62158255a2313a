"""The demo's batch flow: its numbers, and that what does not parse fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployments.source_metrics import measure, python_files, source_metrics

SOURCE = '''"""A module."""
# a comment
import os


class Thing:
    def method(self):
        if self:  # another
            for _ in ():
                pass


async def short(): ...
'''


def test_a_file_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "thing.py"
    path.write_text(SOURCE)
    assert measure(str(path)) == {
        "path": str(path),
        "bytes": len(SOURCE),
        "lines": 13,
        "code_lines": 8,
        "comment_lines": 2,
        "functions": 2,
        "classes": 1,
        "max_nesting": 4,
        "longest_function": {"name": "method", "lines": 4},
    }


@pytest.mark.parametrize("source", [b"def f(:\n", b"x = '\xff'\n", b"a\0b"])
def test_what_does_not_parse_is_a_failure(tmp_path: Path, source: bytes) -> None:
    path = tmp_path / "broken.py"
    path.write_bytes(source)
    with pytest.raises((SyntaxError, ValueError)):
        measure(str(path))


def test_the_machines_own_library_has_files_to_measure() -> None:
    files = list(python_files())
    assert len(files) > 500
    assert files == sorted(files)
    assert list(python_files(3)) == files[:3]
    measured = [measure(path) for path in files[:20]]
    assert len(json.dumps(measured)) > 1000


def test_its_flow_is_named_and_loads_from_its_file() -> None:
    assert source_metrics.name == "source-metrics"
    assert source_metrics._entrypoint == "deployments.source_metrics:source_metrics"
