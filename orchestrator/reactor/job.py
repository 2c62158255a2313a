"""What the reactor is given: one job, ready to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.core.killswitch import Switch
from orchestrator.core.machine import Setup
from orchestrator.core.model import Batch, BatchReference, RunId, StopCause, StopMode, StopRecord, idempotency_key
from orchestrator.engine.gateway import Deployment, Submission
from orchestrator.store import JobFolder

OnParentCancelled = Literal["cancel", "drain", "abandon"]


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds between things the parent does by itself.

    Args:
        poll: Least time between two readings of the children in flight.
        fence: Between two looks at the job folder for stops and controls.
        page: Between two renewals of the live page.
        log: Between two progress lines.
        store_patience: How long an unreadable job folder is tried again before the job is given up.
        alive: Between two signs of life of a child; 0 when children give none.
    """

    poll: float = 3.0
    fence: float = 2.0
    page: float = 6.0
    log: float = 30.0
    store_patience: float = 600.0
    alive: float = 0.0


@dataclass(frozen=True)
class PassItems:
    """How items reach the child: by reference (a batch flow), or as parameters of a flow that is not ours.

    Args:
        kind: `reference`, `list`, `one` or `parameters`.
        name: The parameter that takes the list or the item; None otherwise.
    """

    kind: str = "reference"
    name: str | None = None

    @property
    def by_value(self) -> bool:
        return self.kind != "reference"

    def parameters(self, shared: Mapping[str, Any], values: Sequence[Any]) -> dict[str, Any]:
        """The child's parameters for these items (by value only)."""
        if self.kind == "list":
            return {**shared, str(self.name): list(values)}
        (value,) = values
        return {**shared, **value} if self.kind == "parameters" else {**shared, str(self.name): value}


@dataclass(frozen=True)
class Job:
    """One job: where it lies, what is to be submitted, and under which names.

    Args:
        deployments: The deployment of each group; key None is the one for everything else.
        parameters: Passed to every child besides its items.
        mask: Takes secrets out of a text that somebody else wrote.
        page_run: The parent's flow run, on whose page the live page appears; None outside of runs.
        first: The job whose items are run again, with the address of its page; None for other items.
        epoch: Which parent of this job this is; a folder that shows a newer one ends it.
        age: Seconds from the job's creation until this parent began; 0 for the one that created it.
    """

    id: str
    nonce: str
    folder: JobFolder
    batches: Sequence[Batch]
    setup: Setup
    deployments: Mapping[str | None, Deployment]
    epoch: int
    fail_if: Switch | None = None
    pass_items: PassItems = PassItems()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    tags: Sequence[str] = ()
    job_variables: Mapping[str, Any] = field(default_factory=dict)
    work_queue_name: str | None = None
    page_run: RunId | None = None
    url: str | None = None
    mask: Callable[[str], str] = str
    first: tuple[str, str | None] | None = None
    times: Times = Times()
    on_parent_cancelled: OnParentCancelled = "cancel"
    age: float = 0.0

    def stop_after(self, cause: StopCause, reason: str, who: str) -> StopRecord | None:
        """The stop that a parent leaves which ends before its job does; None when it leaves the job to be resumed."""
        if self.on_parent_cancelled == "abandon":
            return None
        mode = StopMode.DRAIN if self.on_parent_cancelled == "drain" else StopMode.CANCEL
        return StopRecord(mode, cause, reason, who)

    def stop_of_cancelled(self, parent: str) -> StopRecord | None:
        """The stop when the parent run of that name is cancelled."""
        return self.stop_after(StopCause.PARENT_CANCELLED, f"{parent} was cancelled", f"parent run {parent}")

    @property
    def name(self) -> str:
        """The deployments' names, for people."""
        return ", ".join(dict.fromkeys(d.name for d in self.deployments.values()))

    def deployment_of(self, batch: int) -> Deployment:
        group = self.batches[batch].group
        return self.deployments.get(group) or self.deployments[None]

    def key(self, batch: int, attempt: int) -> str:
        return idempotency_key(self.id, self.nonce, batch, attempt)

    def run_name(self, batch: int, attempt: int = 0) -> str:
        """What people call the child run of a batch."""
        again = f" again {attempt}" if attempt else ""
        return f"{self.deployment_of(batch).flow_name} {batch + 1}/{len(self.batches)}{again}"

    def run_url(self, run: RunId) -> str | None:
        """A child run's page, beside the parent's; None when that is not known."""
        if self.url is None or self.page_run is None or not self.url.endswith(self.page_run):
            return None
        return self.url.removesuffix(self.page_run) + run

    def submission(self, index: int, attempt: int) -> Submission:
        """The child run of an attempt. Reads the job folder when items go by value."""
        batch, deployment = self.batches[index], self.deployment_of(index)
        if self.pass_items.by_value:
            values = [item.value for item in self.folder.read_items(batch)]
            parameters = self.pass_items.parameters(self.parameters, values)
        else:
            reference = BatchReference.of(
                job=self.id,
                folder=self.folder.url,
                nonce=self.nonce,
                batches=len(self.batches),
                attempt=attempt,
                batch=batch,
            )
            parameters = {**self.parameters, "batch": reference.to_json()}
        return Submission(
            key=self.key(index, attempt),
            deployment=deployment,
            name=self.run_name(index, attempt),
            parameters=parameters,
            tags=(*self.tags, "orchestrator", f"job:{self.id}"),
            job_variables=self.job_variables,
            work_queue_name=self.work_queue_name,
        )
