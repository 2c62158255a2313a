"""Parts of the pages that are made from the code are as the code is now."""

from __future__ import annotations

import re
import tomllib

import pytest

from orchestrator.flows.requests import CHILD_REQUESTS
from tests.docs.generate import FILES, PARTS, renewed
from tests.docs.pages import ROOT, anchors, blocks, pages, prose

pytestmark = pytest.mark.docs

INSIDE = ("fence", "lease", "tally", "ledger", "reactor", "gateway", "epoch")
"""Words for the code and the architecture page only."""

NOT_FOR_USERS = ("docs/architecture.md", "docs/glossary.md", "docs/job-folder.md")
"""They tell of the inside: how it works, its words, its files."""
FOR_USERS = ["CHANGELOG.md", *sorted({page.relative_to(ROOT).as_posix() for page in pages()} - {*NOT_FOR_USERS})]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_generated_parts_are_up_to_date(page: object) -> None:
    from pathlib import Path

    assert isinstance(page, Path)
    assert renewed(page.read_text()) == page.read_text(), "run `python -m tests.docs.generate`"


@pytest.mark.parametrize("name", FILES)
def test_generated_files_are_up_to_date(name: str) -> None:
    assert (ROOT / name).read_text() == FILES[name](), "run `python -m tests.docs.generate`"


def test_every_generated_part_stands_on_a_page() -> None:
    text = "".join(page.read_text() for page in pages())
    for name in PARTS:
        assert text.count(f"<!-- generated: {name} -->") == 1, name


def test_the_floors_that_are_drawn_are_the_floors_that_are_kept() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(c for c in contracts if c["type"] == "layers")["layers"]
    drawn = next(b.text for b in blocks(ROOT / "docs" / "architecture.md") if b.language == "text")
    floors = [{name.strip(" ()") for name in layer.split("|")} - {"__main__", "tasks"} for layer in layers]
    lines = [set(re.findall(r"(?:^|\|) *(\w+)", line)) for line in drawn.splitlines()]
    assert [floor for floor in floors if floor] == lines


def test_links_lead_somewhere() -> None:
    for page in [*pages(), ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", prose(page)):
            if target.startswith(("http://", "https://")):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(file), f"{page.name}: {target} names no heading of {file.name}"


def test_a_child_run_costs_the_same_number_of_requests_on_every_page() -> None:
    """`benchmarks/README.md` says what other numbers count."""
    found = {
        (page.name, int(number))
        for page in pages()
        for number in re.findall(r"child run\b[^.\n]{0,60}?\babout (\d+)(?: requests|,)", prose(page))
    }
    assert {number for _, number in found} == {CHILD_REQUESTS}
    assert {name for name, _ in found} == {"architecture.md", "cloud.md", "operations.md"}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("name", FOR_USERS)
def test_pages_for_users_speak_their_words(name: str) -> None:
    """Names of settings and files may hold them; sentences may not."""
    text = re.sub(r"`[^`\n]+`", "", prose(ROOT / name))
    for word in INSIDE:
        assert not re.search(rf"\b{word}s?\b", text, re.IGNORECASE), f"{name} says {word!r}"
    assert not re.search(r"\b(subflow|chunk|abort|flip)s?\b", text, re.IGNORECASE)
