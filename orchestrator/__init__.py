"""Fan a collection of items out over a Prefect deployment: batches as child runs, every item accounted for.

    from orchestrator import batch_flow, orchestrate

Names are loaded when they are first used: importing Prefect takes a second, which the command line's `--help` and a
program that only reads a report need not wait for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.batchrun.context import ItemContext
    from orchestrator.core.killswitch import (
        CompletedBatches,
        ConsecutiveFailed,
        ConsecutiveFailedBatches,
        CrashedAttempts,
        CrashedBatches,
        Elapsed,
        ErrorCount,
        FailedBatches,
        FailedCount,
        FailedRate,
        NotStartedCount,
        RecentFailedRate,
        SettledBatches,
        SettledCount,
        Stalled,
        SucceededCount,
        Switch,
        UnknownCount,
    )
    from orchestrator.core.model import ItemOutcome, Verdict
    from orchestrator.core.report import Report
    from orchestrator.errors import (
        ConfigurationError,
        DeploymentNotFoundError,
        EngineError,
        EngineUnavailableError,
        ExpressionError,
        ItemTimeoutError,
        JobCancelledError,
        JobConflictError,
        JobError,
        JobFailedError,
        JobNotFoundError,
        KillSwitchTrippedError,
        OrchestratorError,
        SourceError,
        StorageError,
    )
    from orchestrator.flows.batch import batch_flow
    from orchestrator.flows.call import orchestrate, orchestrate_sync, resume, resume_sync
    from orchestrator.flows.opening import open_job
    from orchestrator.reactor.view import JobView
    from orchestrator.settings import Settings
    from orchestrator.store import JobFolder

_SWITCHES = (
    "CompletedBatches", "ConsecutiveFailed", "ConsecutiveFailedBatches", "CrashedAttempts", "CrashedBatches", "Elapsed",
    "ErrorCount", "FailedBatches", "FailedCount", "FailedRate", "NotStartedCount", "RecentFailedRate", "SettledBatches",
    "SettledCount", "Stalled", "SucceededCount", "Switch", "UnknownCount",
)  # fmt: skip
_ERRORS = (
    "ConfigurationError", "DeploymentNotFoundError", "EngineError", "EngineUnavailableError", "ExpressionError",
    "ItemTimeoutError", "JobCancelledError", "JobConflictError", "JobError", "JobFailedError", "JobNotFoundError",
    "KillSwitchTrippedError", "OrchestratorError", "SourceError", "StorageError",
)  # fmt: skip
_HOMES = {
    **dict.fromkeys(_SWITCHES, "orchestrator.core.killswitch"),
    **dict.fromkeys(_ERRORS, "orchestrator.errors"),
    **dict.fromkeys(("orchestrate", "orchestrate_sync", "resume", "resume_sync"), "orchestrator.flows.call"),
    "batch_flow": "orchestrator.flows.batch",
    "ItemContext": "orchestrator.batchrun.context",
    "ItemOutcome": "orchestrator.core.model",
    "JobFolder": "orchestrator.store",
    "JobView": "orchestrator.reactor.view",
    "open_job": "orchestrator.flows.opening",
    "Report": "orchestrator.core.report",
    "Settings": "orchestrator.settings",
    "Verdict": "orchestrator.core.model",
}

__all__ = [
    "CompletedBatches",
    "ConfigurationError",
    "ConsecutiveFailed",
    "ConsecutiveFailedBatches",
    "CrashedAttempts",
    "CrashedBatches",
    "DeploymentNotFoundError",
    "Elapsed",
    "EngineError",
    "EngineUnavailableError",
    "ErrorCount",
    "ExpressionError",
    "FailedBatches",
    "FailedCount",
    "FailedRate",
    "ItemContext",
    "ItemOutcome",
    "ItemTimeoutError",
    "JobCancelledError",
    "JobConflictError",
    "JobError",
    "JobFailedError",
    "JobFolder",
    "JobNotFoundError",
    "JobView",
    "KillSwitchTrippedError",
    "NotStartedCount",
    "OrchestratorError",
    "RecentFailedRate",
    "Report",
    "Settings",
    "SettledBatches",
    "SettledCount",
    "SourceError",
    "Stalled",
    "StorageError",
    "SucceededCount",
    "Switch",
    "UnknownCount",
    "Verdict",
    "batch_flow",
    "open_job",
    "orchestrate",
    "orchestrate_sync",
    "resume",
    "resume_sync",
]


def __getattr__(name: str) -> object:
    if (home := _HOMES.get(name)) is None:
        raise AttributeError(f"module 'orchestrator' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
