"""The parent's sign of life: a thread of its own, so that neither a busy loop nor a cancelled flow stops it."""

from __future__ import annotations

import logging
import threading

from orchestrator.engine.output import drop_broken_outputs, outlive_readers
from orchestrator.store import JobFolder
from orchestrator.store.records import OnLoss

logger = logging.getLogger(__name__)


class Heart:
    """Writes a growing counter into the job folder every `beat_seconds` until stopped.

    Args:
        on_loss: What children do when it stands still for too long: `stop` or `finish` their batch.
    """

    def __init__(self, folder: JobFolder, epoch: int, *, beat_seconds: float, on_loss: OnLoss) -> None:
        self._folder, self._epoch, self._beat, self._on_loss = folder, epoch, beat_seconds, on_loss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="job-sign-of-life", daemon=True)
        self._counter = 0
        self.trouble: Exception | None = None  # why the last sign of life could not be written

    def start(self) -> None:
        """Beat once before the first child exists, then from the thread."""
        outlive_readers()
        self.beat()
        self._thread.start()

    def beat(self) -> None:
        self._counter += 1
        self._folder.write_lease(self._counter, self._epoch, self._on_loss)

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self._beat + 5)

    def _run(self) -> None:
        while not self._stop.wait(self._beat):
            try:
                drop_broken_outputs()
                self.beat()
                self.trouble = None
            except Exception as e:  # noqa: BLE001 - a thread that dies of a surprise would end every child run
                # Children count an unreadable folder as silence: nothing to do but go on trying.
                self.trouble = e
                logger.debug("The sign of life could not be written: %s", e)
