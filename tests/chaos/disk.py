"""A small disk for job folders, which can be filled: a tmpfs of its own, where this process may mount one."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

SIZE = "16m"
_FILLER = ".filler"


class SmallDisk:
    """Attributes:
    missing: Why there is none; then the folder is an ordinary one and filling it is not possible.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.missing: str | None = None

    def mount(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() != 0:
            self.missing = "only root may mount a tmpfs"
            return
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "chaos", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            self.missing = f"a tmpfs cannot be mounted here: {done.stderr.strip()}"

    def fill(self) -> None:
        """Until not one byte is left."""
        with open(self.folder / _FILLER, "ab", buffering=0) as file:
            for size in (65_536, 4096, 1):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError as e:
                    if e.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        (self.folder / _FILLER).unlink(missing_ok=True)

    def unmount(self) -> None:
        if self.missing is None and os.path.ismount(self.folder):
            subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, check=False)
