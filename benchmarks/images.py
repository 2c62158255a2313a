"""Images through a slow service with a limit of 4: how much of what the limit allows three child runs get out of it.

The service (`deployments/services/thumbnails.py`, a process) counts for itself: jobs in progress at once, and the time
between its first start and its last end. The ideal is that all 4 are busy all that time.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.table import Row
from orchestrator.stack import Stack

IMAGES, SECONDS, CHILDREN = 48, 8.0, 3
LIMIT = 4
USED = 0.8
ROOT = Path(__file__).parent.parent
LIMITS = {
    "thumbnails": ["--limit", str(LIMIT)],
    "thumbnails-starts": ["--limit", "50", "--slot-decay-per-second", "50"],
}


def rows(stack: Stack, *, images: int = IMAGES, seconds: float = SECONDS) -> list[Row]:
    """One job of that many images, each of which keeps the service busy for so long."""
    from orchestrator import orchestrate_sync
    from tests.images import Thumbnails, draw

    stack.deploy(ROOT / "prefect.yaml", "image-batch/default")
    for name, options in LIMITS.items():
        _gcl(stack, "create", name, *options)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-images-") as home, Thumbnails(seconds) as service:
            names = draw(Path(home) / "in", images)
            with stack.activated():
                report = orchestrate_sync(
                    "image-batch/default", names, batch_size=images // CHILDREN, max_in_flight=CHILDREN,
                    parameters={"source": f"{home}/in", "target": f"{home}/out", "service": service.url},
                    storage=f"{home}/jobs",
                )  # fmt: skip
            stats = service.stats()
    finally:
        for name in LIMITS:
            _gcl(stack, "delete", name)
    if (report.items.succeeded, stats["done"]) != (images, images):
        raise RuntimeError(f"{report.items.succeeded} images succeeded, {stats['done']} jobs done of {images}")
    ideal = images * seconds / LIMIT
    what = f"{images} images of {seconds:g} s, limit {LIMIT}, {CHILDREN} child runs"
    most, used = stats["most_in_progress"], ideal / stats["seconds"]
    return [
        Row("images", f"{what}: most in progress at the service", most, LIMIT, "allowed", wanted="<= allowed",
            holds=most <= LIMIT),
        Row("images", f"{what}: throughput", images / stats["seconds"], LIMIT / seconds, "allowed", used,
            f"ratio >= {USED}", used >= USED),
    ]  # fmt: skip


def _gcl(stack: Stack, *arguments: str) -> None:
    command = [sys.executable, "-m", "prefect", "gcl", *arguments]
    subprocess.run(command, env=stack.environment, check=True, capture_output=True)
