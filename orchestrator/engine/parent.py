"""The parent's door to a real Prefect. Every claim about Prefect here is measured; see `docs/architecture.md`.

Nothing is decided here. What Prefect says is believed only when it was read from its record: a wait that returns is a
hint, an answer to a cancel is an answer and not an end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    ArtifactFilterType,
    FlowFilter,
    FlowFilterId,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterIdempotencyKey,
)
from prefect.client.schemas.objects import Artifact
from prefect.client.schemas.objects import FlowRun as PrefectRun
from prefect.client.schemas.sorting import ArtifactSort
from prefect.events import emit_event
from prefect.flow_runs import wait_for_flow_run
from websockets.exceptions import InvalidStatus

from orchestrator.core.model import Phase, Progress, RunId
from orchestrator.engine import progress as progress_artifact
from orchestrator.engine.cancelling import Canceller
from orchestrator.engine.connection import Connection
from orchestrator.engine.deployments import capacity_of, find_deployment
from orchestrator.engine.gateway import CancelReply, Capacity, Deployment, Run, Submission, always
from orchestrator.engine.masking import Masker
from orchestrator.engine.pace import Need, Pace, asking
from orchestrator.engine.submitting import Submitter
from orchestrator.engine.translate import status_of
from orchestrator.errors import EngineError

PAGE = 200  # PREFECT_SERVER_API_DEFAULT_LIMIT: more is refused
_PROGRESS_PAGE = 100
_PROGRESS_PAGES = 5
_MESSAGE_CHARS = 2000


class PrefectGateway:
    """See `gateway.Gateway`. Used from one event loop; connects at the first call.

    Args:
        masked_env: Names of environment variables whose values are masked in all that is written.
        submit_concurrency: Creations under way at once; above 1 only with PostgreSQL.
        parent: The parent run that events are related to, if there is one.
        pace: When a request may be sent; by default whenever Prefect lets it.
    """

    def __init__(
        self,
        *,
        masked_env: Sequence[str] = (),
        submit_concurrency: int = 1,
        parent: RunId | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._masker = Masker(masked_env)
        self._connection = Connection(self._masker, pace)
        self._submitter = Submitter(self._connection, submit_concurrency)
        self._canceller = Canceller(self._connection, self.read_runs)
        self._parent = parent
        self._pages: dict[tuple[str | None, str], UUID] = {}
        self._emitted = False

    @property
    def requests(self) -> int:
        """HTTP requests and websocket upgrades so far, retries included."""
        return self._connection.requests

    @property
    def pace(self) -> Pace:
        return self._connection.pace

    async def find_deployment(self, name: str) -> Deployment:
        return await find_deployment(self._connection, name)

    async def capacity(self, deployment: Deployment, work_queue_name: str | None = None) -> Capacity:
        return await capacity_of(self._connection, deployment, work_queue_name)

    async def submit(self, submission: Submission, wanted: Callable[[], bool] = always) -> Run:
        return run_of(await self._submitter.submit(submission, wanted), self._masker)

    async def find_by_keys(self, flow_id: str, keys: Sequence[str]) -> Mapping[str, Run]:
        flow = FlowFilter(id=FlowFilterId(any_=[UUID(flow_id)]))
        found: dict[str, Run] = {}
        for start in range(0, len(keys), PAGE):
            chunk = list(keys[start : start + PAGE])
            wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=chunk))

            async def read(client: PrefectClient, wanted: FlowRunFilter = wanted) -> list[PrefectRun]:
                return await client.read_flow_runs(flow_filter=flow, flow_run_filter=wanted, limit=PAGE)

            for run in await self._connection.call("look up child runs", read):
                if run.idempotency_key is not None:
                    found[run.idempotency_key] = run_of(run, self._masker)
        return found

    async def read_runs(self, ids: Sequence[RunId]) -> Mapping[RunId, Run]:
        found: dict[RunId, Run] = {}
        for start in range(0, len(ids), PAGE):
            wanted = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(id_) for id_ in ids[start : start + PAGE]]))

            async def read(client: PrefectClient, wanted: FlowRunFilter = wanted) -> list[PrefectRun]:
                return await client.read_flow_runs(flow_run_filter=wanted, limit=PAGE)

            for run in await self._connection.call("read child runs", read):
                found[RunId(str(run.id))] = run_of(run, self._masker)
        return found

    async def wait(self, run_id: RunId, timeout_seconds: float) -> Run | None:
        client = await self._connection.client()
        try:
            with asking(Need.LISTEN):
                await self._connection.take_turn()  # its websocket
                # Its annotation says whole seconds; anyio takes any.
                seen = await wait_for_flow_run(UUID(run_id), timeout=timeout_seconds, client=client)  # type: ignore[arg-type]
        except InvalidStatus as error:
            self._connection.turned_away(error.response.status_code, error.response.headers)
            return None
        except Exception:  # noqa: BLE001 - refused, cut, closed early, timed out or lying: all say nothing of the run
            return None
        run = run_of(seen, self._masker)
        # The event is published before the commit: what was read may still be the state before it.
        return run if run.phase.is_terminal else None

    async def request_cancel(self, ids: Sequence[RunId]) -> Mapping[RunId, CancelReply]:
        with asking(Need.CANCEL):
            return await self._canceller.cancel(ids)

    async def read_progress(self, ids: Sequence[RunId]) -> Sequence[Progress]:
        newest: dict[UUID, Progress] = {}
        for start in range(0, len(ids), _PROGRESS_PAGE):
            chunk = [UUID(id_) for id_ in ids[start : start + _PROGRESS_PAGE]]
            # Children's own progress artifacts come along and may crowd ours out of a page.
            for page in range(_PROGRESS_PAGES):
                artifacts = await self._progress_page(chunk, page * PAGE)
                for artifact in artifacts:
                    news = progress_artifact.decode(artifact.metadata_)
                    run_id = artifact.flow_run_id
                    if news is None or run_id is None:
                        continue
                    if run_id not in newest or news.sequence > newest[run_id].sequence:
                        newest[run_id] = news
                if len(artifacts) < PAGE or all(id_ in newest for id_ in chunk):
                    break
        return list(newest.values())

    async def _progress_page(self, ids: list[UUID], offset: int) -> list[Artifact]:
        wanted = ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=ids),
            type=ArtifactFilterType(any_=[progress_artifact.ARTIFACT_TYPE]),
        )
        return await self._connection.call(
            "read progress",
            lambda client: client.read_artifacts(
                artifact_filter=wanted, sort=ArtifactSort.UPDATED_DESC, limit=PAGE, offset=offset
            ),
        )

    async def publish_page(self, run_id: RunId | None, key: str, markdown: str) -> None:
        with asking(Need.SHOW):
            await self._publish_page(run_id, key, markdown)

    async def _publish_page(self, run_id: RunId | None, key: str, markdown: str) -> None:
        text, place = self._masker(markdown), (run_id, key)
        if place not in self._pages and run_id is not None:
            await self._find_page(run_id, key)
        if (known := self._pages.get(place)) is not None:
            try:
                await self._connection.call(
                    "update the page", lambda client: client.update_artifact(known, ArtifactUpdate(data=text))
                )
                return
            except EngineError as error:
                # Unlike others, update_artifact leaves a 404 as it is. Somebody deleted the page: make it anew.
                if status_of(error) != 404:
                    raise
        owner = None if run_id is None else UUID(run_id)
        what = "How the job is doing; its report once it is over."
        new = ArtifactCreate(key=key, type="markdown", description=what, data=text, flow_run_id=owner)
        created = await self._connection.call("create the page", lambda client: client.create_artifact(new))
        self._pages[place] = created.id

    async def add_to_page(self, run_id: RunId, key: str, line: str) -> None:
        with asking(Need.SHOW):
            await self._add_to_page(run_id, key, line)

    async def _add_to_page(self, run_id: RunId, key: str, line: str) -> None:
        page, text = await self._find_page(run_id, key), self._masker(line)
        if page is None or not isinstance(page.data, str) or text in page.data:
            return
        longer, id_ = ArtifactUpdate(data=f"{page.data}\n\n{text}"), page.id
        await self._connection.call("add to the page", lambda client: client.update_artifact(id_, longer))

    async def _find_page(self, run_id: RunId, key: str) -> Artifact | None:
        """The page an earlier process of the same run made, so that a retried parent continues it."""
        wanted = ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(run_id)]), key=ArtifactFilterKey(any_=[key])
        )
        found = await self._connection.call(
            "find the page", lambda client: client.read_artifacts(artifact_filter=wanted, limit=1)
        )
        if not found:
            return None
        self._pages[(run_id, key)] = found[0].id
        return found[0]

    async def emit(self, event: str, job_id: str, payload: Mapping[str, Any]) -> None:
        related = []
        if self._parent is not None:
            related = [{"prefect.resource.id": f"prefect.flow-run.{self._parent}", "prefect.resource.role": "flow-run"}]
        resource = {"prefect.resource.id": f"orchestrator.job.{job_id}", "prefect.resource.name": job_id}
        try:
            if not self._emitted:
                self._emitted = True
                with asking(Need.SHOW):
                    await self._connection.take_turn()  # the websocket that all events share
            # Its first call starts a thread and imports what it needs.
            await asyncio.to_thread(
                emit_event, event=event, resource=resource, related=related, payload=self._masker.value(dict(payload))
            )
        except Exception:  # noqa: BLE001 - an event is a courtesy; no job fails for one
            return

    async def close(self) -> None:
        await self._connection.close()


def run_of(run: PrefectRun, masker: Masker) -> Run:
    """Our view of Prefect's record of a run."""
    state = run.state
    message = state.message if state is not None else None
    return Run(
        id=RunId(str(run.id)),
        name=run.name,
        key=run.idempotency_key,
        deployment_id=str(run.deployment_id) if run.deployment_id else None,
        phase=Phase(state.type.value) if state is not None else Phase.SCHEDULED,
        state_name=(state.name or "") if state is not None else "",
        since=state.timestamp if state is not None else None,
        message=masker(message)[:_MESSAGE_CHARS] if message else None,
        # Not start_time: a run cancelled before it ran has one. Source: measured, 3.8.8.
        started=run.run_count > 0,
    )
