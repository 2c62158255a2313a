"""Only what docs/pools.md says depends on the type of a work pool: folders of one machine, pools of our own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "orchestrator"
TYPES = {"process", "docker", "kubernetes", "ecs", "cloud-run-v2", "prefect-agent"}
ASKED = {
    "flows/sharing.py": "processes of this machine see its folders, containers what they mount",
    "flows/target.py": "a parent that is a process like its child runs need not be asked about",
    "cli/installing.py": "creates pools of ours, and asks for an image where runs need one",
}
"""Where the type is asked for, and why."""
SAME_FOR_ALL = ("core", "reactor", "batchrun", "store")


def asks(file: Path) -> bool:
    """Whether it compares something with the name of a pool's type."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Compare):
            told = {c.value for part in node.comparators for c in ast.walk(part) if isinstance(c, ast.Constant)}
            about = {n.attr for n in ast.walk(node.left) if isinstance(n, ast.Attribute)}
            about |= {n.id for n in ast.walk(node.left) if isinstance(n, ast.Name)}
            if told & TYPES and about & {"type", "pool_type"}:
                return True
    return False


def test_the_type_of_a_pool_is_asked_for_in_few_places() -> None:
    found = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if asks(file) and not file.is_relative_to(PACKAGE / "stack")
    }
    assert found == set(ASKED)


@pytest.mark.parametrize("folder", SAME_FOR_ALL)
def test_a_job_runs_the_same_on_every_pool(folder: str) -> None:
    for file in (PACKAGE / folder).rglob("*.py"):
        assert "pool_type" not in file.read_text(), file
