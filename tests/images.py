"""Real images, and the service that makes thumbnails of them as a process of its own."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import httpx
from PIL import Image

ROOT = Path(__file__).parents[1]


def draw(folder: Path, count: int) -> list[str]:
    """PNG and JPEG images of different sizes and colours; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(count)
    names = []
    for number in range(count):
        size = (chance.randint(100, 400), chance.randint(100, 400))
        image = Image.new("RGB", size, (number * 7 % 256, 90, 255 - number % 256))
        image.paste((255, 255, 0), (10, 10, 60, 40))
        names.append(f"{number:03}.{'png' if number % 2 else 'jpg'}")
        image.save(folder / names[-1])
    return names


class Thumbnails:
    """`deployments/services/thumbnails.py`, running.

    Args:
        seconds: That a job takes.
        most: Jobs that it takes at once.
    """

    def __init__(self, seconds: float, most: int = 1000) -> None:
        self._options = ["--seconds", str(seconds), "--most", str(most)]
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it; after a `kill`, on the same port."""
        port = ["--port", self.url.rpartition(":")[2]] if self.url else []
        program = [sys.executable, str(ROOT / "deployments" / "services" / "thumbnails.py")]
        self._process = subprocess.Popen([*program, *self._options, *port], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().split()[-1]

    def kill(self) -> None:
        """As a crash: connections are cut."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/stats", trust_env=False).raise_for_status().json()
        return found

    def order(self, kind: str, name: str, times: int = 1_000_000) -> None:
        """Order trouble for jobs of that name."""
        asked = {"kind": kind, "name": name, "times": times}
        httpx.post(f"{self.url}/trouble", params=asked, trust_env=False).raise_for_status()
