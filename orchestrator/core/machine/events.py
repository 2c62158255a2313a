"""News in the past tense, orders in the imperative: all that goes into the machine and all that comes out.

Every event and command about a batch names the attempt it is about: news of an older attempt is recognised and ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.killswitch import Switch
from orchestrator.core.model import BatchOutcome, Phase, Progress, Reading, RunId, StopRecord, Verdict

# ------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class Started:
    """The parent begins to act (after `Restored` and adoptions, when it takes over)."""


@dataclass(frozen=True, slots=True)
class Restored:
    """On resume: the folder shows that this attempt was over before this parent began.

    Args:
        phase: Its terminal state, if Prefect knows it; of a run that is `left`, where it is.
        recalled: Why an earlier parent wanted its run to end; None when none did.
        left: Its run, which the stopping job gave up without seeing it end; None when there is no such run.
    """

    batch: int
    attempt: int
    reading: Reading
    phase: Phase | None = None
    recalled: str | None = None
    left: RunId | None = None


@dataclass(frozen=True, slots=True)
class Submitted:
    """The child run exists (created now, found under its key, or adopted on resume)."""

    batch: int
    attempt: int
    run: RunId
    phase: Phase
    started: bool = False


@dataclass(frozen=True, slots=True)
class Recalled:
    """On resume: an earlier parent wanted the run of this attempt to end, although the job goes on.

    Args:
        reason: Why, in its words.
        silent: Because its process gave no sign of life, or never came up: its end is not waited for beyond a bound.
    """

    batch: int
    attempt: int
    reason: str
    silent: bool = False


@dataclass(frozen=True, slots=True)
class SubmissionDeferred:
    """Prefect could not be asked to create it; nothing was created."""

    batch: int
    attempt: int


@dataclass(frozen=True, slots=True)
class SubmissionLost:
    """The creation was sent and its answer lost: the child may exist."""

    batch: int
    attempt: int


@dataclass(frozen=True, slots=True)
class SubmissionRefused:
    """Prefect refused the creation for good."""

    batch: int
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class SubmissionAbsent:
    """Asked by key: no such child exists (yet)."""

    batch: int
    attempt: int


@dataclass(frozen=True, slots=True)
class RunSeen:
    """The record of a child run was read."""

    batch: int
    attempt: int
    phase: Phase
    started: bool = False
    state_name: str = ""
    message: str = ""  # how it died, in Prefect's words, when it crashed; why it does not reach the job folder


@dataclass(frozen=True, slots=True)
class RunVanished:
    """The record of a child run was asked for and not returned: it was deleted."""

    batch: int
    attempt: int


@dataclass(frozen=True, slots=True)
class FellSilent:
    """A child run that Prefect says is running gave no sign of life for so long: its process is gone, or stands."""

    batch: int
    attempt: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Spared:
    """These runs were not cancelled: they had begun to run, which nobody had told before."""

    runs: tuple[RunId, ...]


@dataclass(frozen=True, slots=True)
class Progressed:
    """News of the items of a running child."""

    progress: Progress


@dataclass(frozen=True, slots=True)
class Closed:
    """The ledger of an attempt that is over was read; later records of it do not count."""

    batch: int
    attempt: int
    reading: Reading


@dataclass(frozen=True, slots=True)
class CloseFailed:
    """The ledger could not be read in spite of many tries."""

    batch: int
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Somebody wants the job stopped (a person, the parent's cancellation, an error of ours)."""

    record: StopRecord
    written: bool = False  # it was read from the job folder, so it need not be written again


@dataclass(frozen=True, slots=True)
class ControlChanged:
    """An operator changed how the job runs; None leaves a value as it is.

    Args:
        no_kill_switch: Take the kill switch away.
        who, asked, reason: Who asked for it, when (in UTC), and why; for people, "" when not known.
    """

    max_in_flight: int | None = None
    paused: bool | None = None
    kill_switch: Switch | None = None
    no_kill_switch: bool = False
    who: str = ""
    asked: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Superseded:
    """A newer parent took this job over: this one acts no more."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed.

    Args:
        read_at: When the children in flight were last read, on the job's clock: what is known of them is as old as
            that, and no child is given up for a phase it may have left since. None: just now.
    """

    read_at: float | None = None


Event = (
    Started
    | Restored
    | Submitted
    | Recalled
    | SubmissionDeferred
    | SubmissionLost
    | SubmissionRefused
    | SubmissionAbsent
    | RunSeen
    | RunVanished
    | FellSilent
    | Spared
    | Progressed
    | Closed
    | CloseFailed
    | StopRequested
    | ControlChanged
    | Superseded
    | Ticked
)

BatchEvent = (
    Restored
    | Submitted
    | Recalled
    | SubmissionDeferred
    | SubmissionLost
    | SubmissionRefused
    | SubmissionAbsent
    | RunSeen
    | RunVanished
    | FellSilent
    | Closed
    | CloseFailed
)

# ------------------------------------------------------------------ commands


@dataclass(frozen=True, slots=True)
class Submit:
    """Create the child run of this attempt (under its key: twice is once)."""

    batch: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Resolve:
    """Find out by key whether the child run of this attempt exists."""

    batch: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ask Prefect to cancel these runs (CANCELLING; asked is not done).

    Args:
        spare_running: Read them first and leave out those that run by now: their items are owed a grace.
    """

    runs: tuple[RunId, ...]
    spare_running: bool = False


@dataclass(frozen=True, slots=True)
class Recall:
    """Write down why this attempt is given up although the job goes on; then ask Prefect to cancel its run.

    In this order: a parent that takes over meanwhile must not take our cancelling for somebody else's.

    Args:
        silent: Because its process gave no sign of life, or never came up: its end is not waited for beyond a bound.
    """

    batch: int
    attempt: int
    run: RunId
    reason: str
    silent: bool = False


@dataclass(frozen=True, slots=True)
class Close:
    """Read what the ledger says of this attempt, and revoke it unless it ended by itself.

    Args:
        phase: The terminal state that was read; None when the run vanished or was not seen to end.
        how: How it died, in one line; written down for the next attempt.
    """

    batch: int
    attempt: int
    phase: Phase | None
    how: str = ""


@dataclass(frozen=True, slots=True)
class WriteStop:
    """Write the stop into the job folder, before anything else happens."""

    record: StopRecord


@dataclass(frozen=True, slots=True)
class Settle:
    """For those who watch: a batch is over. Nothing is to be done."""

    batch: int
    attempt: int
    outcome: BatchOutcome
    reason: str


@dataclass(frozen=True, slots=True)
class TryAgain:
    """For those who watch: an attempt was lost and the batch waits for the next one. Nothing is to be done."""

    batch: int
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The job is over."""

    verdict: Verdict


@dataclass(frozen=True, slots=True)
class StandDown:
    """Another parent owns the job: end without touching anything."""


Command = Submit | Resolve | Cancel | Recall | Close | WriteStop | Settle | TryAgain | Finish | StandDown
