"""The lock files: what a clean machine installs, whatever was released since."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ["requirements.lock", "requirements-dev.lock", "docker/requirements.lock"]


def locked(name: str) -> dict[str, Requirement]:
    """Each pinned package, as its line says it."""
    lines = re.findall(r"^([A-Za-z0-9].*?)\s*\\$", (ROOT / name).read_text(), re.MULTILINE)
    return {canonicalize_name(pin.name): pin for pin in map(Requirement, lines)}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_package_is_pinned_with_the_extras_that_others_ask_of_it(lock: str) -> None:
    """To pip `name[extra]` is another project than the pinned `name`: it takes the newest, and finds no hash for it."""
    pins, asked = locked(lock), 0
    for name, pin in pins.items():
        try:
            wanted = map(Requirement, metadata.requires(name) or ())
        except metadata.PackageNotFoundError:
            continue  # of another platform
        for requirement in wanted:
            marker, environments = requirement.marker, [{"extra": extra} for extra in ("", *pin.extras)]
            if requirement.extras and (marker is None or any(map(marker.evaluate, environments))):
                asked += 1
                assert requirement.extras <= pins[canonicalize_name(requirement.name)].extras, f"{name}: {requirement}"
    assert asked >= 3


def test_the_image_has_the_versions_that_everything_else_is_tested_with() -> None:
    image, tested = locked("docker/requirements.lock"), locked("requirements-dev.lock")
    assert "prefect" in image
    assert not {name for name, pin in image.items() if tested.get(name, pin).specifier != pin.specifier}
