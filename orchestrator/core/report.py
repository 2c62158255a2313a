"""How a job ended: every item in exactly one count, and why, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.core.machine.state import State
from orchestrator.core.model import BatchOutcome, Failure, Verdict
from orchestrator.errors import DamagedReportError

EXIT_CODES = {
    Verdict.COMPLETED: 0,
    Verdict.ENOUGH: 0,
    Verdict.TRIPPED: 1,
    Verdict.FAILED: 1,
    Verdict.CANCELLED: 4,
}


@dataclass(frozen=True, slots=True)
class ItemCounts:
    """Items by outcome; the last four add up to `total`."""

    total: int
    succeeded: int
    failed: int
    unknown: int
    not_started: int


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """Batches by outcome; all but `total` add up to `total`."""

    total: int
    completed: int
    failed: int
    crashed: int
    cancelled: int
    not_submitted: int
    unconfirmed: int


@dataclass(frozen=True, slots=True)
class ErrorCluster:
    """Failed items by error type; `example` is the text of one of them, None when none was kept."""

    type: str
    count: int
    example: str | None = None


@dataclass(frozen=True, slots=True)
class KillSwitchReport:
    """What the kill switch was, whether it tripped, on which clause and with which numbers (`at`)."""

    expression: str | None
    tripped: bool = False
    clause: str | None = None
    at: Mapping[str, float] = field(default_factory=dict)
    batch: int | None = None
    first_failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The end of a job.

    Args:
        verdict: How it ended; `failed_by_rule` says that `fail_if` holds although it ran to its end.
        reason: One line for people; "" when there is nothing to explain.
        seconds: From the start of the job to its end; when it was resumed, from its creation, the time without a
            parent run included.
        max_in_flight: The bound that was in force at the start.
        max_in_flight_seen: Most child runs at once, as the parent run that ended the job saw them.
        api_requests: Requests that the parent run that ended the job made to Prefect.
        notes: Further lines that a person should read.
        retry_of: Id of the job whose items were run again; None for other items.
    """

    job_id: str
    verdict: Verdict
    failed_by_rule: bool
    reason: str
    deployment: str
    seconds: float
    items: ItemCounts
    batches: BatchCounts
    kill_switch: KillSwitchReport
    errors: Sequence[ErrorCluster] = ()
    max_in_flight: int = 0
    max_in_flight_seen: int = 0
    api_requests: int = 0
    storage: str = ""
    url: str | None = None
    notes: Sequence[str] = ()
    retry_of: str | None = None

    @property
    def exit_code(self) -> int:
        """What the command line ends with. 0 completed or enough, 1 failed or tripped, 4 cancelled."""
        return 1 if self.failed_by_rule else EXIT_CODES[self.verdict]

    @property
    def ok(self) -> bool:
        """The job did what was asked of it."""
        return self.exit_code == 0

    @property
    def headline(self) -> str:
        """One line that says how it ended, e.g. "12 of 10,000 items failed"."""
        n, total = self.items, self.items.total
        if self.verdict is Verdict.COMPLETED:
            bad = [(n.failed, "failed"), (n.unknown, "unknown"), (n.not_started, "not started")]
            said = ", ".join(f"{count:,} {word}" for count, word in bad if count)
            if not said:
                return f"all {total:,} items succeeded" if total else "no items"
            if n.failed and not n.unknown and not n.not_started:
                return f"{n.failed:,} of {total:,} items failed"
            return f"of {total:,} items: {n.succeeded:,} succeeded, {said}"
        return f"{self.reason or self.verdict.value}; {n.succeeded:,} of {total:,} items succeeded"

    def to_json(self) -> dict[str, Any]:
        """The report as JSON, the form of `--json` and of `report.json`."""
        data = asdict(self)
        data["verdict"] = self.verdict.value
        data["seconds"] = round(self.seconds, 3)
        data["errors"] = [asdict(e) for e in self.errors]
        data["notes"] = list(self.notes)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """A report from its JSON form.

        Raises:
            ConfigurationError: it is not one of ours (damaged, or of another version).
        """
        try:
            switch = dict(data["kill_switch"])
            first = switch.pop("first_failure", None)
            known = {k: data[k] for k in cls.__dataclass_fields__ if k in data}
            known.update(
                verdict=Verdict(data["verdict"]),
                items=ItemCounts(**data["items"]),
                batches=BatchCounts(**data["batches"]),
                kill_switch=KillSwitchReport(**switch, first_failure=Failure(**first) if first else None),
                errors=tuple(ErrorCluster(**e) for e in data.get("errors", ())),
                notes=tuple(data.get("notes", ())),
            )
            found = cls(**known)
            _check(found)
            return found
        except (KeyError, TypeError, ValueError) as e:
            raise DamagedReportError(
                f"the job's report is damaged ({e}); settle it again with `orchestrator resume`"
            ) from e


def _check(report: Report) -> None:
    """Nothing, when its numbers can be.

    Raises:
        ValueError: a count is none, they do not add up, or a time or text is none.
    """
    n, b = report.items, report.batches
    for counts in (n, b):
        numbers = [getattr(counts, field) for field in counts.__dataclass_fields__]
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("a count is no whole number >= 0")
        if sum(numbers[1:]) != numbers[0]:  # the first is the total
            raise ValueError("its counts do not add up")
    if type(report.seconds) not in (int, float) or not 0 <= report.seconds < 10**12:
        raise ValueError("its seconds are no time")
    texts = (report.job_id, report.reason, report.deployment, report.storage, *report.notes)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a text is none")
    if not all(type(v) in (int, float) for v in report.kill_switch.at.values()):
        raise ValueError("the kill switch's numbers are none")
    if any(type(e.count) is not int for e in report.errors):
        raise ValueError("a count of errors is none")


def build_report(
    state: State,
    *,
    job_id: str,
    deployment: str,
    failed_by_rule: bool,
    api_requests: int = 0,
    storage: str = "",
    url: str | None = None,
    retry_of: str | None = None,
    age: float = 0.0,
) -> Report:
    """The report of a job whose machine is over.

    Args:
        age: Seconds that the job existed before this parent began.

    Raises:
        ValueError: it is not over, or its counts do not add up (a bug of ours).
    """
    if state.verdict is None:
        raise ValueError("the job is not over")
    tally, outcomes = state.tally, state.tally.outcomes
    items = ItemCounts(tally.total, tally.succeeded, tally.failed, tally.unknown, tally.not_started)
    if items.succeeded + items.failed + items.unknown + items.not_started != items.total:
        raise ValueError(f"items do not add up: {items}")
    tripped = state.verdict is Verdict.TRIPPED
    return Report(
        job_id=job_id,
        verdict=state.verdict,
        failed_by_rule=failed_by_rule,
        reason=state.stop.reason if state.stop else "",
        deployment=deployment,
        seconds=round(age + tally.now - tally.started, 3),  # as in `report.json`: read again, it is the same report
        items=items,
        batches=BatchCounts(
            len(state.batches),
            *(outcomes[o] for o in BatchOutcome),
        ),
        kill_switch=KillSwitchReport(
            str(state.kill_switch) if state.kill_switch is not None else None,
            tripped,
            (state.tripped_clause or (state.stop.reason if state.stop else None)) if tripped else None,
            state.tripped_numbers if tripped else {},
            state.tripped_batch if tripped else None,
            tally.first_failure,
        ),
        errors=error_clusters(state),
        max_in_flight=state.setup.max_in_flight,
        max_in_flight_seen=state.max_in_flight_seen,
        api_requests=api_requests,
        storage=storage,
        url=url,
        notes=(*state.standing.changes, *state.all_notes()),
        retry_of=retry_of,
    )


def error_clusters(state: State) -> tuple[ErrorCluster, ...]:
    """Failed items by error type, the most frequent first, at most twenty."""
    counts = [(t, n) for t, n in state.tally.error_counts.most_common(20) if n > 0]
    examples = state.tally.examples
    return tuple(ErrorCluster(t, n, examples[t].text if t in examples else None) for t, n in counts)
