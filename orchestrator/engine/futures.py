"""Why a task never began: the error of the task before it, instead of Prefect's word that it is NotReady.

Of a chain `load.submit(extract.submit(item))` whose first task fails, Prefect leaves the second one Pending, named
NotReady; its `result()` raises `UnfinishedRun` and says nothing of the reason, and its state names no more than the id
of the task run before it. So the futures of a run are noted as they are made, until they have succeeded.
Source: prefect task_engine.py (UpstreamTaskError), states.py (UnfinishedRun), futures.py, 3.8.8.
"""

from __future__ import annotations

import re
import threading
from typing import Any
from uuid import UUID

from prefect.exceptions import UnfinishedRun
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner

_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MOST = 10_000  # futures of failed tasks that nobody asked for the reason of


class Submitted:
    """The futures that a task runner made and that have not succeeded."""

    def __init__(self) -> None:
        self._futures: dict[UUID, PrefectFuture[Any]] = {}
        self._lock = threading.Lock()

    def watch(self, runner: TaskRunner[Any]) -> None:
        """Note what this runner submits from now on; Prefect makes a runner of its own for each run of a flow."""
        submit = runner.submit

        def noting(*args: Any, **kwargs: Any) -> PrefectFuture[Any]:
            future: PrefectFuture[Any] = submit(*args, **kwargs)
            with self._lock:
                self._futures[future.task_run_id] = future
                if len(self._futures) > _MOST:
                    self._futures.pop(next(iter(self._futures)))
            future.add_done_callback(self._done)
            return future

        runner.submit = noting  # type: ignore[method-assign]

    def result(self, future: PrefectFuture[Any]) -> Any:
        """Its result, waited for.

        Raises:
            Exception: the task's own, or, where it never began, that of the task that it waited for.
        """
        try:
            return future.result()
        except UnfinishedRun:
            before = self._before(future)
            if before is None:
                raise
            self.result(before)
            raise  # that one succeeded: it was not the reason
        finally:
            with self._lock:
                self._futures.pop(future.task_run_id, None)

    def _before(self, future: PrefectFuture[Any]) -> PrefectFuture[Any] | None:
        """The task run that a NotReady one waited for in vain."""
        state = future.state
        named = _ID.search(state.message or "") if state.name == "NotReady" else None
        with self._lock:
            return self._futures.get(UUID(named[0])) if named else None

    def _done(self, future: PrefectFuture[Any]) -> None:
        try:
            future.wait()  # it is over: this only reads the state
            succeeded = future.state.is_completed()
        except Exception:  # noqa: BLE001 - kept, then; whoever asks for its result is told
            return
        if succeeded:
            with self._lock:
                self._futures.pop(future.task_run_id, None)
