"""The image: what is in it and what is not, and that it works with nothing but a scratch folder to write to."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path
from typing import Any

import prefect
import pytest

from orchestrator.stack.containers import IMAGE, IMAGE_UID, VERSION
from tests.containers.engine import Engine

SECRET = re.compile(r"(?i)(password|passwd|secret|token|api_?key|auth_string)")


@pytest.fixture(scope="module")
def files(docker_engine: Engine, flow_image: str, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every path in the image's file system, as a container would see it."""
    container = docker_engine.client.containers.create(flow_image, labels=docker_engine.labels)
    path = tmp_path_factory.mktemp("image") / "files.tar"
    try:
        with path.open("wb") as out:
            for piece in container.export(chunk_size=1 << 20):
                out.write(piece)
    finally:
        container.remove()
    with tarfile.open(path) as tar:
        names = {f"/{member.name}" for member in tar}
    path.unlink()
    return names


@pytest.fixture(scope="module")
def config(docker_engine: Engine, flow_image: str) -> dict[str, Any]:
    return dict(docker_engine.client.images.get(flow_image).attrs["Config"])


def test_it_works_as_nobody_in_particular_with_a_read_only_root(docker_engine: Engine, flow_image: str) -> None:
    said = docker_engine.run(
        flow_image,
        ["sh", "-c", "id -u && id -g && orchestrator --version && prefect version && touch /opt/flows/x; echo end"],
    )
    assert said.split()[:2] == [str(IMAGE_UID)] * 2, said
    assert VERSION in said
    assert prefect.__version__ in said
    assert "Read-only file system" in said
    assert said.rstrip().endswith("end")


def test_it_works_as_any_other_user(docker_engine: Engine, flow_image: str) -> None:
    program = "import os, getpass, orchestrator, prefect; print(os.getuid(), getpass.getuser())"
    said = docker_engine.run(flow_image, ["python", "-c", program], user="12345:12345")
    assert "12345 flows" in said


def test_its_workers_know_docker_pools_and_its_flows_object_stores(docker_engine: Engine, flow_image: str) -> None:
    program = "import prefect_docker.worker, prefect_redis, s3fs, asyncpg, PIL, psycopg, redis, orchestrator.start"
    docker_engine.run(flow_image, ["python", "-c", program])


def test_the_installed_packages_fit_together(docker_engine: Engine, flow_image: str) -> None:
    pip = ["/usr/local/bin/python", "-m", "pip", "--python", "/opt/venv/bin/python"]
    said = docker_engine.run(flow_image, [*pip, "check"])
    assert "No broken requirements" in said


def test_an_interrupted_container_ends_at_once(docker_engine: Engine, flow_image: str) -> None:
    """`--init`: a main process without handlers of its own would ignore SIGTERM as process 1."""
    container = docker_engine.client.containers.run(
        flow_image, ["sleep", "600"], detach=True, init=True, labels=docker_engine.labels, network_mode="host"
    )
    container.stop(timeout=60)
    assert container.wait(timeout=60)["StatusCode"] == 143
    container.remove()


def test_its_labels_say_what_it_is(config: dict[str, Any]) -> None:
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == VERSION
    assert labels["org.opencontainers.image.title"] == "prefect-batch-orchestrator"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert config["User"] == f"{IMAGE_UID}:{IMAGE_UID}"


def test_no_build_tool_and_no_leftover_of_the_build_is_in_it(files: set[str]) -> None:
    packages = {Path(name).name for name in files if name.startswith("/opt/venv/lib/") and name.count("/") == 6}
    assert "orchestrator" in packages
    assert not packages & {"pip", "setuptools", "wheel", "hatchling", "editables", "uv", "pytest", "mypy"}
    programs = {Path(name).name for name in files if re.match(r"(/usr(/local)?|/opt/venv)?/s?bin/", name)}
    assert "orchestrator" in programs
    assert not programs & {"gcc", "cc", "g++", "make", "ld", "git", "docker", "cargo"}
    assert not [name for name in files if name.startswith(("/build", "/root/.cache", "/tmp/"))]
    assert not [name for name in files if name.endswith(".whl") and "/ensurepip/" not in name]


def test_nothing_of_the_checkout_is_in_it_but_the_package_and_the_examples(files: set[str]) -> None:
    assert "/opt/flows/deployments/source_metrics.py" in files
    assert {name.split("/")[3] for name in files if re.match("/opt/flows/.", name)} == {"deployments"}
    assert not [name for name in files if "/.git" in name or Path(name).name.startswith(".env")]


def test_no_secret_is_in_what_the_image_says_of_itself(
    docker_engine: Engine, flow_image: str, config: dict[str, Any]
) -> None:
    history = docker_engine.client.images.get(flow_image).history()
    own = [layer["CreatedBy"] for layer in history] + config["Env"] + list(config["Labels"].values())
    assert not [text for text in own if SECRET.search(text)]
    assert not [text for text in own if re.search(r"https?://", text)]


def test_an_image_for_other_flows_is_a_few_lines(docker_engine: Engine, flow_image: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from orchestrator import batch_flow\n\n\n@batch_flow\ndef mine(item: int) -> int:\n    return item + 1\n"
    )
    (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE}\nCOPY mine.py /opt/flows/\n")
    tag = f"prefect-batch-orchestrator-test:{docker_engine.session}"
    image, _ = docker_engine.client.images.build(path=str(tmp_path), tag=tag, labels=docker_engine.labels, rm=True)
    try:
        said = docker_engine.run(tag, ["python", "-c", "import mine; print(mine.mine.name, mine.mine.fn)"])
        assert said.startswith("mine ")
    finally:
        docker_engine.client.images.remove(image.id, force=True)
