"""The language of stopping: when a job is to stop early, has had enough, or counts as failed.

A switch is one expression over the counts of a job, written as text or built from objects; both are the same value:

    parse("failed >= 10 or (failed_rate > 0.05 and settled >= 200)")
    FailedCount(10) | FailedRate(0.05, min_sample=200)

It is a pure question: asking twice changes nothing. Three answers exist. A value that is missing (no item has settled
yet, a division by zero) makes its comparison *unknown*, which spreads as in Kleene's logic, and only *true* trips.

`names` is the vocabulary, `tree` what an expression is made of and what it means, `language` reads text, `switches`
is what everyone else uses, `prefecto` keeps the names of prefecto's users.
"""

from orchestrator.core.killswitch.names import ERRORS, NAMES, RECENT
from orchestrator.core.killswitch.prefecto import (
    AnyFailedSwitch,
    CountSwitch,
    KillSwitch,
    KillSwitchError,
    RateSwitch,
    TaskState,
)
from orchestrator.core.killswitch.switches import (
    DEFAULT_FAIL_IF,
    DEFAULT_KILL_SWITCH,
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
    from_limits,
    parse,
)
from orchestrator.core.killswitch.tree import MAX_DEPTH, MAX_LENGTH, MAX_WINDOW, Readings

__all__ = [
    "DEFAULT_FAIL_IF",
    "DEFAULT_KILL_SWITCH",
    "ERRORS",
    "MAX_DEPTH",
    "MAX_LENGTH",
    "MAX_WINDOW",
    "NAMES",
    "RECENT",
    "AnyFailedSwitch",
    "CompletedBatches",
    "ConsecutiveFailed",
    "ConsecutiveFailedBatches",
    "CountSwitch",
    "CrashedAttempts",
    "CrashedBatches",
    "Elapsed",
    "ErrorCount",
    "FailedBatches",
    "FailedCount",
    "FailedRate",
    "KillSwitch",
    "KillSwitchError",
    "NotStartedCount",
    "RateSwitch",
    "Readings",
    "RecentFailedRate",
    "SettledBatches",
    "SettledCount",
    "Stalled",
    "SucceededCount",
    "Switch",
    "TaskState",
    "UnknownCount",
    "from_limits",
    "parse",
]
