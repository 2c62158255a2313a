"""Every code block and command of README and docs/ does what the page says."""

from __future__ import annotations

import os
import re
import shlex
import socket
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from orchestrator.stack import Stack
from tests.docs.pages import ROOT, Block, blocks, pages, prose
from tests.docs.reader import NOT_RUN, Reader, commands, file_name
from tests.postgres import postgres_server
from tests.redis_server import redis_server
from tests.redis_server import required as redis_required

LANGUAGES = {"bash", "python", "yaml", "dockerfile", "text", "json", "expression", "mermaid"}

DRAWINGS = {
    ("README.md", "mermaid"): "a drawing",
    ("docs/architecture.md", "mermaid"): "a drawing, or generated (test_generated.py)",
    ("docs/architecture.md", "text"): "a drawing",
    ("docs/kill-switch.md", "text"): "an error, compared below",
}
"""Blocks that show and say nothing to do, by page and language."""

ELSEWHERE = {
    "docs/job-folder.md": "tests/unit/store/test_page.py",
    "docs/containers.md": "tests/containers/test_page.py",  # needs an engine
    "docs/stack.md": "tests/containers/test_compose.py",  # the same
}
"""Pages whose blocks a test beside the code reads."""

NEED = {
    "README.md": "a stack of the page's own, and the package as it would be installed",
    "docs/cloud.md": "a server",
    "docs/operations.md": "a server, and PostgreSQL and redis-server that nobody uses yet",
    "docs/batch-flows.md": "a server, and a work pool `local` with a worker",
    "docs/secrets.md": "a server, and a work pool `local` with a worker",
    "docs/jobs.md": "a server, and a work pool `local` with a worker",
    "docs/patterns/batch-task.md": "a server",
    "docs/patterns/records.md": "a server, and a work pool `local` with a worker",
    "docs/patterns/existing-flows.md": "a server, and a work pool `local` with a worker",
    "docs/patterns/task-groups.md": "a server, and a work pool `local` with a worker",
    "docs/patterns/videos.md": "a server, and a work pool `local` with a worker",
    "docs/patterns/images.md": "a server, a port, and a work pool `local` with a worker",
    "docs/patterns/queue.md": "a server, a work pool `local` with a worker, and redis-server",
}
"""What a page's blocks need besides a folder."""

QUICK = {"README.md", "docs/cloud.md", "docs/patterns/batch-task.md"}
"""Those of them that `make test` reads; the others are left to `make test-slow`."""

pytestmark = [pytest.mark.docs, pytest.mark.timeout(900)]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This checkout as a wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    done = subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a virtual environment with the wheel in it; its dependencies are those of the tests."""
    home = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # A path alone: what `.pth` files lie there (this checkout, installed in place) is not followed.
    (home / "lib" / version / "site-packages" / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", str(wheel)], check=True
    )
    for program in ("prefect", "pytest"):
        script = home / "bin" / program
        script.write_text(
            f"#!{python}\nimport sys\nfrom importlib.metadata import entry_points\n"
            f"sys.exit(next(e for e in entry_points(group='console_scripts') if e.name == {program!r}).load()())\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    where = "import orchestrator; print(orchestrator.__file__)"
    found = subprocess.run([python, "-c", where], cwd=home, env=environment(home / "bin", dict(os.environ)),
                           capture_output=True, text=True, check=True).stdout  # fmt: skip
    assert str(home) in found, f"the checkout is used instead of the wheel: {found}"
    return home / "bin"


def environment(installed: Path, base: dict[str, str]) -> dict[str, str]:
    """A terminal's environment in which the installed programs come first, and nothing leads to this checkout."""
    own = {name: value for name, value in base.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return own | {"PATH": f"{installed}{os.pathsep}{base['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def reader(installed: Path, tmp_path: Path) -> Iterator[Reader]:
    """Somebody with a terminal and the package, and no Prefect yet."""
    reader = Reader(tmp_path, environment(installed, dict(os.environ)))
    yield reader
    reader.stop()


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def read(reader: Reader, page: str) -> None:
    """Read the page; an error names the block."""
    for block in blocks(ROOT / page):
        if (page, block.language) in DRAWINGS:
            continue
        try:
            reader.read(block)
        except Exception as e:
            raise AssertionError(f"{block}: {e}") from e


@pytest.mark.real
def test_the_readme_leads_a_newcomer_from_nothing_to_results(reader: Reader) -> None:
    reader.instead = {"4200": free_port()}
    reader.environment.pop("PREFECT_SERVER_EPHEMERAL_ENABLED", None)
    read(reader, "README.md")


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A Prefect for the pages alone (they deploy a parent of theirs), with a pool `local` that nobody polls yet."""
    with Stack(tmp_path_factory.mktemp("stack"), workers=0) as stack:
        yield stack


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    """What else a page needs, until the reader has left it."""
    with ExitStack() as started:
        yield started


@pytest.mark.real
@pytest.mark.parametrize(
    "page",
    [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in NEED if n != "README.md"],
)
def test_a_page_for_a_running_prefect_does_what_it_says(
    page: str, servers: ExitStack, reader: Reader, prefect: Stack, installed: Path, tmp_path: Path
) -> None:
    reader.environment = environment(installed, prefect.environment)
    if "redis-server" in NEED[page]:
        redis_required()
        reader.instead = {"6379": free_port()}
    if "PostgreSQL and" in NEED[page]:
        redis_required()
        postgres, redis = servers.enter_context(postgres_server()), servers.enter_context(redis_server(tmp_path))
        reader.instead = {"5432": str(postgres.port), "6379": redis.split(":")[2][:-2], "4300": free_port()}
    if "a port" in NEED[page]:
        reader.instead = {"8900": free_port()}
    if "`local`" in NEED[page]:
        # The reader's own worker: its child runs use the package as it was installed, not this checkout.
        prefect.create_pool("local")
        reader.command("prefect worker start --pool local")
    read(reader, page)


def other_pages() -> list[str]:
    names = [page.relative_to(ROOT).as_posix() for page in pages()]
    return [name for name in names if name not in NEED and name not in ELSEWHERE]


@pytest.mark.parametrize("page", other_pages())
def test_a_page_does_what_it_says(page: str, reader: Reader) -> None:
    read(reader, page)


# ---------------------------------------------------------------------- nothing escapes


def all_blocks() -> list[Block]:
    return [block for page in pages() for block in blocks(page)]


def test_every_block_has_somebody_who_runs_it() -> None:
    for block in all_blocks():
        assert block.language in LANGUAGES, f"{block}: say what it is"
        if block.page in ELSEWHERE:
            continue
        if block.language in ("text", "mermaid") and (block.page, block.language) in DRAWINGS:
            continue
        assert block.language != "mermaid", f"{block}: a drawing must be named in DRAWINGS"
        is_file = block.language in ("yaml", "dockerfile")
        assert not is_file or file_name(block), f"{block}: `# name` says which file it is"


def test_blocks_that_are_read_elsewhere_are_read_there() -> None:
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (ROOT / test).read_text(), f"{test} does not read {page}"


def test_no_fence_is_left_open_or_hidden() -> None:
    for page in pages():
        assert page.read_text().count("```") == 2 * len(blocks(page)), page.name


def test_commands_are_passed_over_for_listed_reasons_only() -> None:
    lines = [line for block in all_blocks() if block.language == "bash" for line in commands(block)]
    for begin in NOT_RUN:
        if begin != "git clone":
            assert any(line.startswith(begin) for line in lines) or begin == "make bench", (
                f"nothing begins with {begin}"
            )


def test_commands_in_the_prose_exist() -> None:
    """`orchestrator x --flag` in running text: the command and its flags are there."""
    from orchestrator.cli.app import make_app

    app = make_app()
    for page in pages():
        for code in re.findall(r"`(orchestrator [a-z][^`\n]*)`", prose(page)):
            words = shlex.split(code)
            if words[1] not in set(app):
                assert page.name == "CHANGELOG.md", f"{page.name}: there is no command {code!r}"
                continue
            flags = {name for argument in app[words[1]].assemble_argument_collection() for name in argument.names}
            for word in words[2:]:
                if word.startswith("--"):
                    assert word.partition("=")[0] in flags, f"{page.name}: {code!r} has no flag {word}"


def test_the_error_on_the_kill_switch_page_is_the_one_people_get() -> None:
    from orchestrator.core.killswitch import parse
    from orchestrator.errors import ExpressionError

    page = ROOT / "docs" / "kill-switch.md"
    shown = [block.text for block in blocks(page) if block.language == "text"]
    assert len(shown) == 1
    with pytest.raises(ExpressionError) as caught:
        parse(shown[0].splitlines()[1].strip())
    assert str(caught.value) == shown[0].rstrip("\n")
