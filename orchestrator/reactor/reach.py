"""Child runs that do not reach the job folder: a fault of the set-up, which ends the job instead of every attempt.

A child says so by the name of its end (`batchrun.reaching`). Whether that is the set-up or one bad machine shows in the
folder: once any child run of a deployment left a trace there, the next one that does not reach it is a lost attempt,
and is tried again. Storage, or the Prefect that knows a block, may be away just while the first child runs start, so
that nothing is concluded before a batch was tried twice, nor while the parent itself has trouble with the storage.
"""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.core.machine import State
from orchestrator.core.machine import events as ev
from orchestrator.core.model import UNREACHABLE, Phase, StopCause, StopMode, StopRecord
from orchestrator.errors import OrchestratorError
from orchestrator.reactor.job import Job
from orchestrator.store import here, shown


class Reach:
    """Judges it, whenever a child run is over.

    Args:
        troubled: The parent itself could not read or write the folder of late.
    """

    def __init__(self, job: Job, state: State, troubled: Callable[[], bool]) -> None:
        self._job, self._state, self._troubled = job, state, troubled
        self._reached: set[str] = set()  # deployments of which a child run left a trace

    def concerns(self, command: ev.Close) -> bool:
        """Whether that child run ended because it did not reach the folder."""
        batch = self._state.batches[command.batch]
        ended_so = command.phase is Phase.FAILED and batch.state_name == UNREACHABLE
        return ended_so and batch.attempt == command.attempt and batch.giving_up is None and self._state.stop is None

    def judge(self, command: ev.Close) -> StopRecord | None:
        """The stop when no child run of its deployment ever reached the folder, which this parent reads and writes."""
        if command.attempt == 0 and self._state.setup.batch_retries:
            return None
        deployment = self._job.deployment_of(command.batch)
        if deployment.id in self._reached or self._troubled():
            return None
        try:
            traces = self._job.folder.attempts()
        except (OrchestratorError, OSError):
            return None
        if any((files.logs or files.ended) and self._job.deployment_of(b).id == deployment.id
               for b, files in traces.items() if b < len(self._job.batches)):  # fmt: skip
            self._reached.add(deployment.id)
            return None
        said = (command.how or "they cannot reach the job folder").rstrip(".")
        ours = f"This parent run ({here()}) reads and writes {shown(self._job.folder.url)}"
        reason = f"child runs of {deployment.name} cannot work: {said[0].lower()}{said[1:]}. {ours}."
        return StopRecord(StopMode.CANCEL, StopCause.FAILED, self._job.mask(reason), "parent run")
