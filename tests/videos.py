"""Real small videos for tests and benchmarks."""

from __future__ import annotations

import io
from pathlib import Path

import av

CLIPS = 4
"""Distinct videos that `clips` makes; the n-th has `12 + 4 * n` frames."""


def clip(number: int, *, width: int = 96, height: int = 64) -> bytes:
    """An MP4 of `12 + 4 * number` frames, key frames every tenth."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=12, options={"g": "10"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for n in range(frames_of(number)):
            frame = av.VideoFrame(width, height, "rgb24")
            shade = bytes((n * 20 % 256, number * 60 % 256, 128))
            line = shade * (width // 2) + bytes(reversed(shade)) * (width - width // 2)
            frame.planes[0].update(line.ljust(frame.planes[0].line_size, b"\0") * height)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def frames_of(number: int) -> int:
    return 12 + 4 * number


def library(folder: Path, count: int) -> list[str]:
    """A folder with so many videos `v-00000.mp4`...: a few distinct ones, linked; their ids."""
    folder.mkdir(parents=True, exist_ok=True)
    originals = []
    for number in range(CLIPS):
        originals.append(folder / f"clip-{number}.mp4")
        originals[-1].write_bytes(clip(number))
    ids = [f"v-{n:05}" for n in range(count)]
    for n, video in enumerate(ids):
        (folder / f"{video}.mp4").hardlink_to(originals[n % CLIPS])
    return ids


def replace(folder: Path, video: str, content: bytes) -> None:
    """Another content for one video alone."""
    path = folder / f"{video}.mp4"
    path.unlink()
    path.write_bytes(content)
