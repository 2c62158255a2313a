"""The door of `cleanup`: child runs that have not ended, parents still to come, flows whose deployment is gone.

Finding only. What is found is judged by the job folders, and cancelled through the gateway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun as PrefectRun
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound

from orchestrator.core.model import Phase, RunId
from orchestrator.engine.connection import Connection
from orchestrator.engine.gateway import Run
from orchestrator.engine.masking import Masker
from orchestrator.engine.pace import Pace
from orchestrator.engine.parent import PAGE, run_of

TAG = "orchestrator"
JOB_TAG = "job:"
_NOT_TERMINAL = [StateType(phase.value) for phase in Phase if not phase.is_terminal]
_MOST = 20_000  # runs read at most: what is left over is found the next time


@dataclass(frozen=True, slots=True)
class TaggedRun:
    """A run that has not ended and carries the tags of a child run; whether it is one, its key says."""

    run: Run
    job_id: str


@dataclass(frozen=True, slots=True)
class ExpectedParent:
    """A run of the deployed parent that has not ended, and the job that its parameters name."""

    run: Run
    job_id: str


class Leftovers(Protocol):
    """What cleanup asks of an engine besides the gateway. Each may raise `EngineUnavailableError`."""

    async def unended_children(self) -> Sequence[TaggedRun]:
        """All runs with the tags of a child run that are in no terminal state."""
        ...

    async def expected_parents(self, flow_name: str) -> Sequence[ExpectedParent]:
        """The runs of that parent flow that are in no terminal state."""
        ...

    async def flow_id(self, flow_name: str) -> str | None:
        """The id of the flow of that name; None when there is none (any more)."""
        ...

    async def close(self) -> None: ...


class PrefectLeftovers:
    """`Leftovers` of a real Prefect; `pace` says when a request may be sent."""

    def __init__(self, masked_env: Sequence[str] = (), pace: Pace | None = None) -> None:
        self._masker = Masker(masked_env)
        self._connection = Connection(self._masker, pace)

    async def unended_children(self) -> Sequence[TaggedRun]:
        wanted = FlowRunFilter(state=_unended(), tags=FlowRunFilterTags(all_=[TAG]))
        found = []
        for run in await self._all("find child runs", None, wanted):
            tag = next((tag for tag in run.tags if tag.startswith(JOB_TAG)), None)
            if tag is not None:
                found.append(TaggedRun(run_of(run, self._masker), tag.removeprefix(JOB_TAG)))
        return found

    async def expected_parents(self, flow_name: str) -> Sequence[ExpectedParent]:
        of_flow = FlowFilter(name=FlowFilterName(any_=[flow_name]))
        runs = await self._all("find parent runs", of_flow, FlowRunFilter(state=_unended()))
        return [ExpectedParent(run_of(r, self._masker), job_of(str(r.id), r.parameters)) for r in runs]

    async def flow_id(self, flow_name: str) -> str | None:
        try:
            flow = await self._connection.call("find the flow", lambda client: client.read_flow_by_name(flow_name))
        except ObjectNotFound:
            return None
        return str(flow.id)

    async def publish(self, run_id: RunId | None, key: str, markdown: str) -> None:
        """Leave a page on a run: what was found and done."""
        what = "What a cleanup found, and what it did about it."
        new = ArtifactCreate(
            key=key, type="markdown", description=what, data=self._masker(markdown),
            flow_run_id=None if run_id is None else UUID(run_id),
        )  # fmt: skip
        await self._connection.call("write the page", lambda client: client.create_artifact(new))

    async def close(self) -> None:
        await self._connection.close()

    async def _all(self, what: str, flow: FlowFilter | None, wanted: FlowRunFilter) -> list[PrefectRun]:
        """Page by page. What ends meanwhile moves the next page up: a run may be missed, and is found the next time."""
        found: dict[UUID, PrefectRun] = {}
        for offset in range(0, _MOST, PAGE):

            async def read(client: PrefectClient, offset: int = offset) -> list[PrefectRun]:
                return await client.read_flow_runs(
                    flow_filter=flow, flow_run_filter=wanted, sort=FlowRunSort.ID_DESC, limit=PAGE, offset=offset
                )

            page = await self._connection.call(what, read)
            found.update((run.id, run) for run in page)
            if len(page) < PAGE:
                break
        return list(found.values())


def job_of(run_id: str, parameters: Mapping[str, Any]) -> str:
    """The job that a run of the deployed parent works on, by its parameters."""
    items, advanced = parameters.get("items"), parameters.get("advanced")
    resumed = items.get("resume") if isinstance(items, Mapping) else None
    named = advanced.get("job_id") if isinstance(advanced, Mapping) else None
    return str(resumed or named or f"{run_id}-1")


def run_ids(texts: Sequence[str]) -> list[RunId]:
    """Those that can be ids of runs: a folder may say anything."""
    found = []
    for text in texts:
        try:
            found.append(RunId(str(UUID(text))))
        except ValueError:
            continue
    return found


def _unended() -> FlowRunFilterState:
    return FlowRunFilterState(type=FlowRunFilterStateType(any_=_NOT_TERMINAL))


__all__ = ["ExpectedParent", "Leftovers", "PrefectLeftovers", "TaggedRun", "job_of", "run_ids"]
