"""Asking child runs to stop: CANCELLING in chunks, never CANCELLED, never forced.

Only CANCELLING is a fence: the server lets a run in it become nothing but Cancelled, whereas it lets a Cancelled run
become Running again. Source: prefect server/orchestration/core_policy.py, 3.8.8; engine-facts 1.4.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas import OrchestrationResult
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from orchestrator.core.model import Phase, RunId
from orchestrator.engine.connection import Connection
from orchestrator.engine.gateway import CancelReply, Run
from orchestrator.engine.translate import is_foreign, status_of
from orchestrator.errors import EngineError

CHUNK = 50  # the server refuses more per request
_PAUSE_SECONDS = 0.2  # each cancel is an event to every worker: not all at once
_ROUNDS = 3
_ONE_BY_ONE = 4  # requests at once, to a server that takes no more than one run in each
_NOT_TERMINAL = [phase.value for phase in Phase if not phase.is_terminal]

Read = Callable[[Sequence[RunId]], Awaitable[Mapping[RunId, Run]]]


class Canceller:
    """Proposes CANCELLING and says what became of each proposal.

    Args:
        read: Reads the record of runs; what an answer leaves open is looked up with it.
    """

    def __init__(self, connection: Connection, read: Read) -> None:
        self._connection, self._read = connection, read
        self._in_bulk = True

    async def cancel(self, ids: Sequence[RunId]) -> Mapping[RunId, CancelReply]:
        """A reply for each run; one that Prefect could not take now has none (ask again)."""
        replies: dict[RunId, CancelReply] = {}
        failed: EngineError | None = None
        for start in range(0, len(ids), CHUNK):
            if start:
                await asyncio.sleep(_PAUSE_SECONDS)
            try:
                replies.update(await self._cancel_chunk(ids[start : start + CHUNK]))
            except EngineError as error:
                failed = failed or error
        if failed is not None and not replies:
            raise failed
        return replies

    async def _cancel_chunk(self, ids: Sequence[RunId]) -> dict[RunId, CancelReply]:
        replies: dict[RunId, CancelReply] = {}
        left = list(ids)
        for _ in range(_ROUNDS):
            try:
                replies.update(await self._ask(left))
            except EngineError:
                if not replies:
                    raise
            if not (left := [id_ for id_ in left if id_ not in replies]):
                break
        return replies

    async def _ask(self, ids: Sequence[RunId]) -> dict[RunId, CancelReply]:
        replies = await self._propose(ids)
        # No answer, or an unclear one: ended, gone, cancelling already, or an error the server swallowed.
        if left := [id_ for id_ in ids if id_ not in replies]:
            runs = await self._read(left)
            for id_ in left:
                if (run := runs.get(id_)) is None:
                    replies[id_] = CancelReply.GONE
                elif run.phase.is_terminal:
                    replies[id_] = CancelReply.ENDED
                elif run.phase is Phase.CANCELLING:
                    replies[id_] = CancelReply.REQUESTED
        return replies

    async def _propose(self, ids: Sequence[RunId]) -> dict[RunId, CancelReply]:
        if self._in_bulk:
            try:
                return await self._connection.call("cancel child runs", lambda client: _bulk(client, ids))
            except (EngineError, ObjectNotFound) as error:
                if is_foreign(error) or status_of(error) not in (404, 405, 422):
                    raise
                self._in_bulk = False  # a server without that route; not asked for it again
        few = asyncio.Semaphore(_ONE_BY_ONE)

        async def one(id_: RunId) -> CancelReply | None:
            async with few:
                return await self._propose_one(id_)

        said = await asyncio.gather(*(one(id_) for id_ in ids), return_exceptions=True)
        failed = [answer for answer in said if isinstance(answer, BaseException)]
        unexpected = [error for error in failed if not isinstance(error, EngineError)]
        if unexpected or len(failed) == len(ids):
            raise (unexpected or failed)[0]
        # Where only some failed, the others are cancelled, and those have no reply.
        return {id_: reply for id_, reply in zip(ids, said, strict=True) if isinstance(reply, CancelReply)}

    async def _propose_one(self, id_: RunId) -> CancelReply | None:
        try:
            result: OrchestrationResult[Any] = await self._connection.call(
                "cancel a child run", lambda client: client.set_flow_run_state(UUID(id_), Cancelling())
            )
        except ObjectNotFound:
            return CancelReply.GONE
        return _reply(result.status.value, result.state.type if result.state is not None else None)


async def _bulk(client: PrefectClient, ids: Sequence[RunId]) -> dict[RunId, CancelReply]:
    # Not a method of the client, and not among the routes its types know. Explicit ids: the server takes the first
    # 50 that match, the same ones each time. Source: prefect server/api/flow_runs.py, 3.8.8.
    body: dict[str, Any] = {
        "flow_runs": {"id": {"any_": list(ids)}, "state": {"type": {"any_": _NOT_TERMINAL}}},
        "state": {"type": StateType.CANCELLING.value, "name": "Cancelling"},
        "limit": CHUNK,
    }
    response = await client.request("POST", "/flow_runs/bulk_set_state", json=body)  # type: ignore[arg-type]
    replies: dict[RunId, CancelReply] = {}
    for result in response.json()["results"]:
        state = (result.get("state") or {}).get("type")
        if (reply := _reply(result["status"], state)) is not None:
            replies[RunId(str(result["flow_run_id"]))] = reply
    return replies


def _reply(status: str, state: str | None) -> CancelReply | None:
    """What an answer says for certain; None when the record has to be read."""
    if status == "ACCEPT":
        return CancelReply.REQUESTED
    if status == "REJECT" and state == StateType.CANCELLED.value:
        return CancelReply.CANCELLED  # it had no infrastructure: over at once
    return None
