"""The form in which events and commands are recorded: complete, stable, and suspicious of what it reads."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest

from orchestrator.core.killswitch import parse
from orchestrator.core.machine import Setup, stripping, wire
from orchestrator.core.machine import events as ev
from orchestrator.core.machine.story import tell_command, tell_event
from orchestrator.core.model import (
    Counts,
    EndReason,
    Failure,
    Phase,
    Progress,
    Reading,
    RunId,
    StopCause,
    StopMode,
    StopRecord,
)

READING = Reading(Counts(3, 1, 0, {"ValueError": 1}, Failure(7, "k", "ValueError", "bad")), 1, 0, True, EndReason.STUCK)
STOP = StopRecord(StopMode.DRAIN, StopCause.REQUESTED, "enough", "me")

# What stands in journals of older versions. A new field goes to the end of its class, with a default; anything else
# raises `wire.FORMAT`.
FORMS: list[tuple[Any, list[Any]]] = [
    (ev.Started(), ["go"]),
    (ev.Restored(1, 0, Reading(Counts(4), 0, 0, True)), ["re", 1, 0, [[4], 0, 0, True]]),
    (ev.Submitted(1, 0, RunId("r"), Phase.SCHEDULED), ["su", 1, 0, "r", "SCHEDULED"]),
    (ev.SubmissionDeferred(1, 0), ["sd", 1, 0]),
    (ev.SubmissionLost(1, 0), ["sl", 1, 0]),
    (ev.SubmissionRefused(1, 0, "no"), ["sr", 1, 0, "no"]),
    (ev.SubmissionAbsent(1, 0), ["sa", 1, 0]),
    (ev.RunSeen(1, 0, Phase.PENDING, False, "Late"), ["rs", 1, 0, "PENDING", False, "Late"]),
    (ev.RunVanished(1, 0), ["rv", 1, 0]),
    (ev.FellSilent(1, 0, 95.5), ["fs", 1, 0, 95.5]),
    (ev.Recalled(1, 0, "silent"), ["rc", 1, 0, "silent"]),
    (ev.Spared((RunId("r"),)), ["sp", ["r"]]),
    (ev.Progressed(Progress(1, 0, 7, Counts(2))), ["pr", [1, 0, 7, [2]]]),
    (
        ev.Closed(1, 0, READING),
        ["cl", 1, 0, [[3, 1, 0, {"ValueError": 1}, [7, "k", "ValueError", "bad"]], 1, 0, True, "stuck"]],
    ),
    (ev.CloseFailed(1, 0, "gone"), ["cf", 1, 0, "gone"]),
    (ev.StopRequested(STOP, True), ["st", ["drain", "requested", "enough", "me"], True]),
    (ev.ControlChanged(3, None, parse("failed >= 1")), ["co", 3, None, "failed >= 1"]),
    (ev.Superseded(), ["ss"]),
    (ev.Ticked(1.5), ["t", 1.5]),
    (ev.Submit(1, 0), ["S", 1, 0]),
    (ev.Resolve(1, 0), ["Q", 1, 0]),
    (ev.Cancel((RunId("r"),), True), ["X", ["r"], True]),
    (ev.Recall(1, 0, RunId("r"), "silent"), ["R", 1, 0, "r", "silent"]),
    (ev.Close(1, 0, None), ["C", 1, 0, None]),
    (ev.WriteStop(STOP), ["W", ["drain", "requested", "enough", "me"]]),
    (ev.Settle(1, 0, ev.BatchOutcome.CRASHED, "lost"), ["Z", 1, 0, "crashed", "lost"]),
    (ev.TryAgain(1, 0, "lost"), ["A", 1, 0, "lost"]),
    (ev.Finish(ev.Verdict.COMPLETED), ["F", "completed"]),
    (ev.StandDown(), ["D"]),
]


def test_every_event_and_every_command_has_a_code_of_its_own() -> None:
    assert set(wire.EVENT_CODES) == set(get_args(ev.Event))
    assert set(wire.COMMAND_CODES) == set(get_args(ev.Command))
    codes = [*wire.EVENT_CODES.values(), *wire.COMMAND_CODES.values()]
    assert len(set(codes)) == len(codes)


def test_every_event_and_every_command_is_among_the_forms_that_may_not_change() -> None:
    assert {type(value) for value, _ in FORMS} == {*wire.EVENT_CODES, *wire.COMMAND_CODES}


@pytest.mark.parametrize(("value", "form"), FORMS, ids=lambda v: type(v).__name__ if is_dataclass(v) else "")
def test_what_was_recorded_by_an_older_version_reads_the_same_today(value: Any, form: list[Any]) -> None:
    if type(value) in wire.EVENT_CODES:
        assert (wire.event_to_wire(value), wire.event_of_wire(form)) == (form, value)
    else:
        assert (wire.command_to_wire(value), wire.command_of_wire(form)) == (form, value)


@pytest.mark.parametrize(("value", "form"), FORMS, ids=lambda v: type(v).__name__ if is_dataclass(v) else "")
def test_every_event_and_every_command_can_be_told(value: Any, form: list[Any]) -> None:
    told = tell_event(value) if type(value) in wire.EVENT_CODES else tell_command(value)
    assert told
    assert type(value).__name__ not in told


def test_of_every_text_in_an_event_it_is_decided_whether_it_is_kept_when_a_job_is_saved() -> None:
    undecided = []
    kinds = {*wire.EVENT_CODES, *wire.COMMAND_CODES, Counts, Reading, Failure, StopRecord, Progress}
    for kind in kinds:
        decided = {n for table in (stripping.TEXTS, stripping.RUNS, stripping.KEPT) for n in table.get(kind, ())}
        hints = get_type_hints(kind)
        for slot in fields(kind):
            # Enumerations are words of ours; what a field of another class holds is decided there.
            hint = hints[slot.name]
            if {hint, *get_args(hint)} & {str, RunId} and slot.name not in decided:
                undecided.append(f"{kind.__name__}.{slot.name}")
    assert not undecided


def test_counts_of_batches_are_written_in_runs() -> None:
    assert wire.setup_to_wire(Setup([100] * 19 + [57], 8)) == [[100, 19, 57, 1], 8]
    assert wire.setup_of_wire([[100, 2, 57, 1], 8]) == Setup([100, 100, 57], 8)


@pytest.mark.parametrize(
    "value",
    [
        None, 5, "go", [], [1], ["nix"], ["go", 1], ["su", 1, 0, "r"], ["su", 1, 0, "r", "FLYING"],
        ["su", "1", 0, "r", "RUNNING"], ["su", True, 0, "r", "RUNNING"], ["t", "now"], ["t", [1]], ["sp", "r"],
        ["cl", 1, 0, [[1], 0, 0]], ["cl", 1, 0, [[1], 0, 0, 1]], ["co", None, None, "failed >="],
        ["cl", 1, 0, [[1, 0, 0, ["ValueError"]], 0, 0, True]], ["st", ["drain"]],
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_event_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        wire.event_of_wire(value)


@pytest.mark.parametrize(
    "value", [None, [], [[1], 8], [[-1, 2], 8], [[5, 10**12], 8], [[1, 1]], [[1, 1], "8"], [[1.0, 1], 8]], ids=str
)
def test_what_is_no_setup_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        wire.setup_of_wire(value)


@pytest.mark.parametrize(
    "value", [None, [], [1, 2], [0, 0, ["go"]], [1, -1, ["go"]], [1, 0.5, ["go"]], [1, 0, ["go"], ["go"]]], ids=str
)
def test_what_is_no_moment_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        wire.Recorded.of_wire(value)


def test_a_newer_format_is_refused_and_both_are_named() -> None:
    data = wire.Header(Setup([1], 1)).to_json() | {"format": wire.FORMAT + 1}
    with pytest.raises(wire.NewerFormatError, match=rf"format {wire.FORMAT + 1}.*up to format {wire.FORMAT}"):
        wire.Header.from_json(data)


@pytest.mark.parametrize("data", [None, [], {}, {"format": "1"}, {"format": 1}, {"format": 1, "setup": []}], ids=str)
def test_what_is_no_header_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        wire.Header.from_json(data)
