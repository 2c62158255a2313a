"""News of a running batch: a progress artifact for parent and people, and a line in the log every half minute.

From a thread of its own: Prefect's API may be slow or away, and no item waits for it or fails with it.
"""

from __future__ import annotations

import threading
import time

from orchestrator.batchrun.door import Door
from orchestrator.batchrun.ending import sentence
from orchestrator.batchrun.recorder import Recorder
from orchestrator.core.model import Counts, Progress
from orchestrator.engine.progress import encode

_LOG_SECONDS = 30.0
_LAST_WORD_SECONDS = 2.0


class News:
    """Tells what the recorder counts; never raises.

    Args:
        job: Job id; empty when the flow runs by itself.
        interval: Least seconds between two pieces of news.
        after: Age of the run, in seconds, before the first.
    """

    def __init__(self, door: Door, recorder: Recorder, *, job: str, batch: int, attempt: int, interval: float,
                 after: float) -> None:  # fmt: skip
        self._door, self._recorder = door, recorder
        self._job, self._batch, self._attempt = job, batch, attempt
        self._interval, self._after = interval, after
        self._sequence = 0
        self._told: Counts | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._tell_all, name="batch-news", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Say the last word when anything was said before, and wait for it a moment at most."""
        self._over.set()
        if self._thread is not None and self._told is not None:
            self._thread.join(_LAST_WORD_SECONDS)

    def _tell_all(self) -> None:
        try:
            self._tell_until_over()
        finally:
            self._door.close_news()

    def _tell_until_over(self) -> None:
        logged = time.monotonic()
        wait = self._after
        while not self._over.wait(wait):
            self._tell()
            wait = self._interval
            if time.monotonic() - logged >= _LOG_SECONDS:
                logged = time.monotonic()
                self._door.logger.info("%s", sentence(self._recorder.counts(), self._recorder.total))
        if self._told is not None:
            self._tell()

    def _tell(self) -> None:
        counts = self._recorder.counts()
        if counts == self._told:
            return
        try:
            news = Progress(self._batch, self._attempt, self._sequence + 1, counts)
            self._door.publish(*encode(news, self._recorder.total, self._job))
        except Exception as error:  # noqa: BLE001 - news is a hint; the ledger is the truth
            self._door.logger.debug("Progress was not published: %s", self._recorder.text_of(error))
            return
        self._sequence += 1
        self._told = counts
