"""Every error we raise on purpose, sorted by who must act on it.

One root. Below it one family for each party that has to move next:

* the person who asked (`ConfigurationError` and its kin, exit code 2): the request is wrong, nothing was created;
* whoever runs Prefect (`EngineError`, exit code 3): the server is away, or did not say what became of a request;
* the outcome of a job (`JobError`, exit codes 1 and 4): the job ran and this is how it ended;
* us (`InternalError`, exit code 1): a bug.

Facts are attributes; the text says the remedy. Nothing here imports anything of ours but for typing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.core.report import Report


def install_extra(name: str) -> str:
    """What to do where the packages of an extra are missing; no index has this package, so it tells of a checkout."""
    return f"install the extra {name!r} of prefect-batch-orchestrator (pip install '.[{name}]' in a checkout)"


class OrchestratorError(Exception):
    """Root of all errors of this package; `exit_code` is what the command line ends with."""

    exit_code: int = 1

    def __reduce__(self) -> tuple[object, ...]:
        # Prefect pickles exceptions when results are persisted; ours take arguments that `args` does not hold.
        return _rebuilt, (type(self), self.args, dict(self.__dict__))


def _rebuilt(kind: type[OrchestratorError], args: tuple[object, ...], facts: dict[str, object]) -> OrchestratorError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(facts)
    return error


# ------------------------------------------------------------------ the person who asked


class ConfigurationError(OrchestratorError):
    """The request cannot be carried out as it stands; nothing was created.

    Args:
        message: One line that names what is wrong and the remedy.
        field: The job parameter (or setting) at fault, as the user spells it; None when it is not one.
    """

    exit_code = 2

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class ExpressionError(ConfigurationError):
    """A kill-switch expression does not parse; the text points at the place with a caret.

    Args:
        reason: What is wrong there, and what would be right.
        text: The whole expression.
        position: Offset of the offending character in `text`, 0-based.
        field: `kill_switch`, `enough_when` or `fail_if`.
    """

    def __init__(self, reason: str, *, text: str, position: int, field: str | None = None) -> None:
        self.reason, self.text, self.position = reason, text, position
        # A long expression shows the neighbourhood of the place only.
        start = max(0, position - 60)
        shown = text[start : position + 60].translate({ord(c): " " for c in "\n\r\t"})
        super().__init__(f"{reason}\n    {shown}\n    {' ' * (position - start)}^", field=field)

    def with_field(self, field: str) -> ExpressionError:
        """The same error, naming the job parameter the expression was given for."""
        return ExpressionError(self.reason, text=self.text, position=self.position, field=field)


class SourceError(ConfigurationError):
    """An item source cannot be read, is malformed, or holds what no batch can hold.

    Args:
        reason: What is wrong and the remedy.
        source: The source as the user named it (user info in URLs removed).
        line: 1-based line (or record) in it; None when the source as a whole is at fault.
    """

    def __init__(self, reason: str, *, source: str, line: int | None = None, field: str | None = "items") -> None:
        self.reason, self.source, self.line = reason, source, line
        line_of = "".join(c if c.isprintable() else " " for c in source)
        shown = line_of if len(line_of) <= 300 else f"{line_of[:150]}…{line_of[-50:]}"
        where = shown if line is None else f"{shown}, line {line}"
        super().__init__(f"{where}: {reason}", field=field)


class StorageError(ConfigurationError):
    """The storage cannot serve as a job folder (not writable, no exclusive create, not shared, newer format)."""

    def __init__(self, message: str, *, field: str | None = "storage") -> None:
        super().__init__(message, field=field)


class StoreCorruptError(StorageError):
    """The job folder holds something else than what was written there (altered, cut off, or not ours)."""


class JobNotFoundError(ConfigurationError):
    """No job of that id in that storage."""


class DamagedReportError(ConfigurationError):
    """A job's report is not one of ours; settling the job again writes it anew."""


class JobConflictError(ConfigurationError):
    """A job id is in use: with another spec (`differences` maps field to (theirs, ours)), or by a live parent."""

    def __init__(self, message: str, *, differences: Mapping[str, tuple[object, object]] | None = None) -> None:
        super().__init__(message, field="job_id")
        self.differences = dict(differences or {})


class JobTakenOverError(JobConflictError):
    """Another parent run took the job over while this one ran it: this one acts no more, and the job goes on."""

    def __init__(self, message: str) -> None:
        ConfigurationError.__init__(self, message)  # no field of the request is to blame
        self.differences = {}


class DeploymentNotFoundError(ConfigurationError):
    """No deployment of that name; `near` holds the most similar names that exist."""

    def __init__(self, name: str, near: Sequence[str] = ()) -> None:
        self.name, self.near = name, tuple(near)
        hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else "`prefect deployment ls` lists them."
        super().__init__(f"there is no deployment {name!r}; {hint}", field="deployment")


# ------------------------------------------------------------------ whoever runs Prefect


class EngineError(OrchestratorError):
    """Prefect did not do what was asked of it, for no fault of the request."""

    exit_code = 3


class EngineUnavailableError(EngineError):
    """Prefect's API cannot be reached or answers that it cannot serve now; asking again later is right."""


class SubmissionUnknownError(EngineError):
    """A creation was sent and nobody knows whether it was carried out.

    Args:
        key: Its idempotency key.
        over: No request is on its way any more: whether there is a run of that key now decides.
    """

    def __init__(self, message: str, *, key: str, over: bool = False) -> None:
        super().__init__(message)
        self.key, self.over = key, over


class SubmissionRefusedError(EngineError):
    """Prefect refused a creation for good (deployment gone, parameters refused); asking again is useless."""


class StoreUnavailableError(EngineError):
    """The job folder cannot be read or written now (disk full, object store away); asking again later may help."""


class AttemptTakenError(EngineError):
    """A batch attempt was started already: by an earlier process of the same child run, or by a rerun of it."""


# ------------------------------------------------------------------ the outcome of a job


class JobError(OrchestratorError):
    """A job ended other than well; `report` accounts for every item all the same."""

    def __init__(self, message: str, *, report: Report) -> None:
        super().__init__(message)
        self.report = report


class KillSwitchTrippedError(JobError):
    """The kill switch tripped: nothing more was started, the rest was stopped."""


class JobFailedError(JobError):
    """`fail_if` holds for the finished job, or the job could not be carried through."""


class JobCancelledError(JobError):
    """The job was stopped by a person or by the end of its parent run."""

    exit_code = 4


class RunDiedError(OrchestratorError):
    """A child run died while this item alone was in progress, after earlier runs of its batch had died too."""


class ItemTimeoutError(OrchestratorError):
    """One item took longer than `item_timeout_seconds`."""


# ------------------------------------------------------------------ us


class InternalError(OrchestratorError):
    """A bug of ours."""


class InvalidTransitionError(InternalError):
    """An event that the machine's table has no row for; the state is unchanged."""
