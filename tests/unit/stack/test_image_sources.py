"""What the image is built from, and how: looked at without an engine."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from docker.utils.build import exclude_paths

from orchestrator.stack.containers import BUILD, IMAGE, VERSION

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
PATTERNS = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def test_the_builder_sees_the_package_the_examples_and_the_locks_alone(tmp_path: Path) -> None:
    wanted = {"pyproject.toml", "README.md", "LICENSE", "requirements.lock", "docker/requirements.lock",
              "orchestrator/core/model.py", "orchestrator/py.typed", "deployments/records/flows.py"}  # fmt: skip
    unwanted = {".env", ".env.local", "docker/.env", "deployments/.env", "orchestrator/.env.prod", ".git/config",
                "tests/conftest.py", "benchmarks/x.py", "docs/x.md", "secrets.txt", "orchestrator/__pycache__/a.pyc",
                ".venv/bin/python", "orchestrator/old.pyc", "prefect.yaml", "docker/x.yaml", "x.jsonl"}  # fmt: skip
    for name in wanted | unwanted:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    seen = {name for name in exclude_paths(str(tmp_path), PATTERNS) if (tmp_path / name).is_file()}
    assert seen == wanted


def test_what_the_dockerfile_copies_is_let_through() -> None:
    copied = [name for line in re.findall(r"^COPY (?!--from)(.*)", DOCKERFILE, re.MULTILINE)
              for name in line.split()[:-1]]  # fmt: skip
    assert len(copied) >= 7
    let_through = {pattern[1:] for pattern in PATTERNS if pattern.startswith("!")}
    assert set(copied) <= let_through


def test_any_builder_can_build_it() -> None:
    for newer in ("# syntax=", "RUN --mount", "<<", "--chmod", "--link", "COPY --parents", "ADD http"):
        assert newer not in DOCKERFILE, newer
    assert "ARG BASE_IMAGE=python:3.11-slim-bookworm\n" in DOCKERFILE
    assert "USER 10001:10001" in DOCKERFILE


def test_the_image_is_named_after_this_version() -> None:
    assert f"ARG VERSION={VERSION}\n" in DOCKERFILE
    assert BUILD in DOCKERFILE
    assert IMAGE.endswith(f":{VERSION}")


def test_every_example_has_a_twin_in_containers_or_a_reason() -> None:
    def entrypoints(name: str) -> set[str]:
        return {entry["entrypoint"] for entry in yaml.safe_load((ROOT / name).read_text())["deployments"]}

    without = {
        "deployments/records/flows.py:records_nightly",  # starts jobs, on whatever deployment
        *(f"deployments/video_ingest.py:video_ingest{more}" for more in ("", "_tasks", "_processes")),  # needs PyAV
    }
    assert entrypoints("docker/prefect.yaml") == entrypoints("prefect.yaml") - without
    twins = yaml.safe_load((ROOT / "docker/prefect.yaml").read_text())["deployments"]
    assert all(twin["name"] == "docker" and twin["work_pool"]["name"] == "docker" for twin in twins)
