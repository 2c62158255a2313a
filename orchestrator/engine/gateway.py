"""The parent's door to Prefect, as a Protocol: what the reactor may ask of an engine, and what it is told.

Two implementations pass one contract suite: `memory.MemoryGateway` (deterministic, scriptable, no server) and
`parent.PrefectGateway`. Every error leaves here as one of ours (`orchestrator.errors`), `from` its cause.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from orchestrator.core.model import Phase, Progress, RunId
from orchestrator.engine.pace import Pace


@dataclass(frozen=True, slots=True)
class Deployment:
    """What the parent needs to know of a deployment it fans out over.

    Args:
        id, name: Its id; its full name `flow-name/deployment-name`.
        flow_id: The scope of idempotency keys.
        pool, pool_type, queue: Where its runs go; None for a deployment without a work pool (`serve`).
        parameter_schema: JSON schema of its parameters, {} when it has none.
        enforces_schema: Prefect refuses wrong types itself (unknown names it lets pass in any case).
        concurrency_limit: Deployment limit on running children, None without one.
        paused: Its schedule is paused (runs created through the API still start).
        is_batch_flow: Its flow has a `batch` parameter that takes a reference.
        volumes: What containers of its runs mount, as Docker writes it: `source:folder inside[:mode]`.
    """

    id: str
    name: str
    flow_id: str
    flow_name: str
    pool: str | None
    pool_type: str | None
    queue: str | None
    parameter_schema: Mapping[str, Any]
    enforces_schema: bool = True
    concurrency_limit: int | None = None
    is_batch_flow: bool = True
    volumes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Capacity:
    """What limits how many children of a deployment run at once.

    Args:
        limit: The smallest of the pool, queue and deployment limits that exist; None when there is none.
        limited_by: What that limit belongs to, for people: "work pool 'p' (limit 4)".
        pool_paused: Pool or queue takes no runs until a person resumes it.
        workers_online: Workers that polled the pool lately; None when the pool type has none (or cannot be asked).
        pool_limit, queue_limit: Of the pool and of the queue alone: a parent that runs there takes one of its places.
        missing_limits: The options of `batch_flow` that name a limit which items could not hold -> why, and the remedy.
    """

    limit: int | None = None
    limited_by: str | None = None
    pool_paused: bool = False
    workers_online: int | None = None
    pool_limit: int | None = None
    queue_limit: int | None = None
    missing_limits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Submission:
    """One child run to create.

    Args:
        key: Idempotency key; creating twice under one key gives one run.
        name: Flow run name, `<flow> <batch+1>/<batches>` (an attempt > 0 adds ` again <attempt>`).
        parameters: JSON; never contains a `__prefect_kind` at any depth (checked before it gets here).
    """

    key: str
    deployment: Deployment
    name: str
    parameters: Mapping[str, Any]
    tags: Sequence[str] = ()
    job_variables: Mapping[str, Any] = field(default_factory=dict)
    work_queue_name: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A child run as the engine's record (never an event) has it.

    Args:
        phase, state_name: Prefect's state type and name, e.g. SCHEDULED and "Late".
        since: When it entered that state (the server's clock).
        message: The state's message, at most 2,000 characters.
        started: It has been RUNNING at some time.
    """

    id: RunId
    name: str
    key: str | None
    deployment_id: str | None
    phase: Phase
    state_name: str
    since: datetime | None = None
    message: str | None = None
    started: bool = False


class CancelReply(StrEnum):
    """What became of a request to cancel. Source: engine-facts 1.4, measured on Prefect 3.8.8."""

    CANCELLED = "cancelled"  # it had no infrastructure: the server cancelled it at once (REJECT + CANCELLED)
    REQUESTED = "requested"  # accepted: CANCELLING; asked is not done
    ENDED = "ended"  # ABORT: it had ended by itself, read it
    GONE = "gone"  # no such run


def always() -> bool:
    """A creation that is wanted whatever happens meanwhile."""
    return True


class Gateway(Protocol):
    """The parent's door. All methods but `requests`, `pace` and `close` may raise `EngineUnavailableError`.

    Each request waits for its turn in `pace`; one that is not wanted any more by then raises `NotWantedError`.
    `requests` counts HTTP requests and websocket upgrades made through this gateway so far.
    """

    @property
    def requests(self) -> int: ...

    @property
    def pace(self) -> Pace:
        """What every request of this gateway waits for: the budget, and what Prefect itself asks for."""
        ...

    async def find_deployment(self, name: str) -> Deployment:
        """The deployment of that full name (or id).

        Raises:
            DeploymentNotFoundError: there is none; carries near matches.
        """
        ...

    async def capacity(self, deployment: Deployment, work_queue_name: str | None = None) -> Capacity:
        """What bounds the deployment's runs now (limits of pool, queue, deployment; pauses; workers)."""
        ...

    async def submit(self, submission: Submission, wanted: Callable[[], bool] = always) -> Run:
        """Create a child run, or find the one already created under the key; then verify that it is ours.

        One creation at a time, with a quick retry of its own on 503 and dropped connections.

        Args:
            wanted: Asked before each try; once it says False nothing is sent any more.

        Raises:
            EngineUnavailableError: nothing was created (as with every method; or it was not wanted any more).
            SubmissionUnknownError: sent, and the answer was lost; ask `find_by_keys`, or submit again (same key).
            SubmissionRefusedError: refused for good, or the key belongs to a run of another deployment.
        """
        ...

    async def find_by_keys(self, flow_id: str, keys: Sequence[str]) -> Mapping[str, Run]:
        """Runs of that flow by idempotency key; keys without a run are absent. Asks in pages of 200."""
        ...

    async def read_runs(self, ids: Sequence[RunId]) -> Mapping[RunId, Run]:
        """The record of each run; an id that is absent no longer exists. Any number of ids; asks in pages of 200."""
        ...

    async def wait(self, run_id: RunId, timeout_seconds: float) -> Run | None:
        """Listen until the run is believed to have ended, at most so long. Only a hint: returns what was *read*.

        Never raises on a lost connection: returns None when the wait ended for any reason but a read terminal state.
        """
        ...

    async def request_cancel(self, ids: Sequence[RunId]) -> Mapping[RunId, CancelReply]:
        """Propose CANCELLING (never CANCELLED, never forced) for each, in chunks of at most 50."""
        ...

    async def read_progress(self, ids: Sequence[RunId]) -> Sequence[Progress]:
        """The newest progress of each run that has any; malformed ones are skipped."""
        ...

    async def publish_page(self, run_id: RunId | None, key: str, markdown: str) -> None:
        """Create or replace the live page (an artifact) on the parent's run; with run_id None, a keyed one only."""
        ...

    async def add_to_page(self, run_id: RunId, key: str, line: str) -> None:
        """Add a line to a page that is there, once; nothing where there is none. For the page of another job."""
        ...

    async def emit(self, event: str, job_id: str, payload: Mapping[str, Any]) -> None:
        """Emit a Prefect event about a job (`orchestrator.job.started`, ...). Best effort: never raises."""
        ...

    async def close(self) -> None:
        """Release connections; the gateway is not used afterwards."""
        ...
