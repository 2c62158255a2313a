"""The extras of this package: what each brings, and that whoever lacks one is told its name."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
from fsspec.registry import _registry, known_implementations

from orchestrator.errors import StorageError
from orchestrator.store import open_store
from orchestrator.store.primitives import knows_package

EXTRAS = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SCHEMES = {
    "s3": ("s3", "s3fs"),
    "s3a": ("s3", "s3fs"),
    "gs": ("gcs", "gcsfs"),
    "gcs": ("gcs", "gcsfs"),
    "az": ("azure", "adlfs"),
    "abfs": ("azure", "adlfs"),
    "abfss": ("azure", "adlfs"),  # fsspec learns of it from the installed adlfs alone
}
"""URL scheme -> the extra that its hint names, and the package that fsspec imports for it."""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_missing_package_is_told_with_the_extra_that_brings_it(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    extra, package = SCHEMES[scheme]
    monkeypatch.delitem(_registry, scheme, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(StorageError, match=rf"the extra '{extra}' of prefect-batch-orchestrator"):
        open_store(f"{scheme}://bucket/jobs")
    assert knows_package(scheme)
    assert [text.partition(">=")[0] for text in EXTRAS[extra]] == [package]
    known = known_implementations.get(scheme)
    assert known is None or known["class"].partition(".")[0] == package


def test_a_scheme_that_nobody_knows_gets_no_hint() -> None:
    assert not knows_package("nosuch")
    with pytest.raises(StorageError, match="unknown kind of URL 'nosuch'"):
        open_store("nosuch://bucket/jobs")


@pytest.mark.parametrize("extra", ["s3", "gcs", "azure"])
def test_an_extra_brings_no_version_that_cannot_create_exclusively(extra: str) -> None:
    """Source: `pipe_file(mode="create")` is in none of fsspec, s3fs, gcsfs, adlfs before 2024.12."""
    (floor,) = [text.partition(">=")[2] for text in EXTRAS[extra]]
    assert tuple(map(int, floor.split("."))) >= (2024, 12)
