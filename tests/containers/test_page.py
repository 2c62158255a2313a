"""The page of containers: read from top to bottom by somebody with an engine, the package and a checkout."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.containers.engine import Engine, program
from tests.docs.pages import ROOT
from tests.docs.reader import Reader
from tests.docs.test_pages import free_port, installed, read, reader, wheel

__all__ = ["installed", "reader", "wheel"]  # fixtures


def test_the_page_of_containers_does_what_it_says(reader: Reader, docker_engine: Engine, flow_image: str) -> None:
    for folder in ("docker", "deployments"):
        shutil.copytree(ROOT / folder, reader.folder / folder, ignore=shutil.ignore_patterns("__pycache__", ".env"))
    mine = f"words:{docker_engine.session}"
    reader.instead = {"4200": free_port(), "words:1": mine}
    reader.environment["PATH"] += os.pathsep + str(Path(program()).parent)
    reader.environment["DOCKER_BUILDKIT"] = "0"  # a client without its plug-in for the other builder will do
    try:
        read(reader, "docs/containers.md")
    finally:
        reader.stop()
        docker_engine.client.images.remove(mine, force=True)
