"""The language of stopping: what it means, what it refuses and where, objects, limits, prefecto's switches."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect import states

from orchestrator.core import killswitch as ks
from orchestrator.core.killswitch import DEFAULT_FAIL_IF, DEFAULT_KILL_SWITCH, NAMES, Switch, from_limits, parse
from orchestrator.core.killswitch.names import FORMS
from orchestrator.errors import ConfigurationError, ExpressionError


@dataclass(frozen=True)
class Counts:
    """Readings as a plain table; what is not in it is missing."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    types: Mapping[str, int] = field(default_factory=dict)
    recent: Mapping[int, float] = field(default_factory=dict)

    def number(self, name: str) -> float | None:
        return self.numbers.get(name)

    def errors(self, type_name: str) -> int:
        return self.types.get(type_name, 0)

    def recent_failed_rate(self, n: int) -> float | None:
        return self.recent.get(n)


def ask(expression: str, **numbers: float) -> bool | None:
    return parse(expression).evaluate(Counts(numbers))


# What it means


def test_the_examples_of_the_documentation_trip_when_they_say() -> None:
    late = "failed >= 10 or (failed_rate > 0.05 and settled >= 200)"
    assert ask(late, failed=10, failed_rate=0.02, settled=500)
    assert ask(late, failed=9, failed_rate=0.06, settled=200)
    assert ask(late, failed=9, failed_rate=0.06, settled=199) is False
    series = parse('consecutive_failed >= 20 or errors["TimeoutError"] >= 5')
    assert series.evaluate(Counts({"consecutive_failed": 0}, types={"TimeoutError": 5}))
    assert parse("recent_failed_rate(500) > 0.2").evaluate(Counts(recent={500: 0.21}))


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("failed < 3", False), ("failed <= 3", True), ("failed > 3", False),
        ("failed >= 3", True), ("failed == 3", True), ("failed != 3", False),
        ("failed + 2 * 3 == 9", True), ("(failed + 2) * 3 == 15", True),
        ("10 - failed - 3 == 4", True), ("10 - (failed - 3) == 10", True),
        ("12 / failed / 2 == 2", True), ("-failed == 0 - 3", True), ("- -failed == 3", True),
        ("failed > 9 or failed > 2 and failed < 9", True),
        ("not failed > 9 and failed > 2", True), ("not not failed == 3", True),
        (".5 + 2. + 1e0 + 1E+1 + 1e-1 == 13.6", True),
    ],
)  # fmt: skip
def test_operators_mean_what_they_do_in_school(expression: str, answer: bool) -> None:
    assert ask(expression, failed=3) is answer


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("failed_rate > 0.5", None),
        ("not failed_rate > 0.5", None),
        ("failed_rate > 0.5 or failed >= 3", True),
        ("failed_rate > 0.5 or failed > 3", None),
        ("failed_rate > 0.5 and failed >= 3", None),
        ("failed_rate > 0.5 and failed > 3", False),
        ("failed / settled > 0.5", None),
        ("-failed_rate < 0", None),
        ("failed_rate + 1 > 0", None),
        ("1e300 * 1e300 > 1", None),
        ("1e300 * 1e300 - 1e300 * 1e300 == 0", None),
        ("recent_failed_rate(5) >= 0", None),
        ('errors["ValueError"] == 0', True),
    ],
)
def test_what_is_missing_is_unknown_and_unknown_does_not_trip(expression: str, answer: bool | None) -> None:
    assert ask(expression, failed=3, settled=0) is answer


def test_a_value_that_is_not_finite_counts_as_missing() -> None:
    assert ask("failed_rate >= 0", failed_rate=float("nan")) is None
    assert ask("stalled > 1", stalled=float("inf")) is None


def test_asking_twice_changes_nothing() -> None:
    switch, counts = parse("failed >= 3 and settled > 2"), Counts({"failed": 3, "settled": 4})
    assert [switch.evaluate(counts) for _ in range(3)] == [True, True, True]


# What it says about itself


@pytest.mark.parametrize(
    ("expression", "clause"),
    [
        ("failed >= 3 or settled > 9", "failed >= 3"),
        ("settled > 9 or failed >= 3", "failed >= 3"),
        ("failed >= 3 and settled < 9", "failed >= 3 and settled < 9"),
        ("failed >= 3 or settled < 9", "failed >= 3"),
        ("(failed >= 3 and settled < 9) or settled == 4", "settled == 4"),
        ("(failed >= 3 or total > 5) and (total > 5 or settled == 4)", "failed >= 3 and settled == 4"),
        ("not (failed > 9 or settled > 9)", "not (failed > 9 or settled > 9)"),
        ("not (failed >= 3 and settled > 9)", "not (settled > 9)"),
        ("not not failed >= 3", "not not (failed >= 3)"),
        ("failed > 3", None),
        ("failed_rate > 0.5", None),
    ],
)
def test_the_clause_is_the_smallest_part_that_made_it_true(expression: str, clause: str | None) -> None:
    assert parse(expression).clause(Counts({"failed": 3, "settled": 4, "total": 5})) == clause


def test_the_numbers_are_those_it_mentions_and_has() -> None:
    switch = parse('failed >= 3 or failed_rate > 0.5 or errors["E"] > 2 or recent_failed_rate(9) > 0.1 or failed > 99')
    counts = Counts({"failed": 4, "total": 9}, types={"E": 1}, recent={9: 0.25})
    assert switch.numbers(counts) == {"failed": 4, 'errors["E"]': 1, "recent_failed_rate(9)": 0.25}
    assert str(switch.numbers(Counts({"failed": 10.0, "failed_rate": 0.5}))["failed"]) == "10"
    assert switch.names() == {"failed", "failed_rate"}
    assert switch.windows() == {9}
    assert switch.error_types() == {"E"}


# How it is written


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("  failed>=10\n or\t(stalled>5) ", "failed >= 10 or stalled > 5"),
        ("failed > 1 or failed_rate > .5 and settled > 9", "failed > 1 or (failed_rate > 0.5 and settled > 9)"),
        ("(failed > 1 or stalled > 2) and total > 3", "(failed > 1 or stalled > 2) and total > 3"),
        ("failed > 1 or (stalled > 2 or total > 3)", "failed > 1 or stalled > 2 or total > 3"),
        ("not failed > 1", "not (failed > 1)"),
        ("(failed + unknown) - (total - 1) > 007", "failed + unknown - (total - 1) > 7"),
        ("-(failed + 1) * - 2 < 1", "-(failed + 1) * -2 < 1"),
        ("failed / (total * 2) > 1.50", "failed / (total * 2) > 1.5"),
        ("failed > 10.0 or failed > 1e3 or failed > 1e20", "failed > 10 or failed > 1000 or failed > 1e+20"),
        ("errors['KeyError'] > 1", 'errors["KeyError"] > 1'),
        ("recent_failed_rate ( 050 ) > 0", "recent_failed_rate(50) > 0"),
        ("1 > 0", "1 > 0"),
    ],
)
def test_there_is_one_way_to_write_it(given: str, canonical: str) -> None:
    assert str(parse(given)) == canonical
    assert str(parse(canonical)) == canonical
    assert parse(given) == parse(canonical)


def test_the_same_text_given_as_a_switch_is_that_switch() -> None:
    switch = parse("failed >= 1")
    assert parse(switch) is switch
    assert repr(switch) == "parse('failed >= 1')"


# What it refuses, and where


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("^", "the expression is empty"),
        ("^ \n", "the expression is empty"),
        ("^faild > 3", "did you mean `failed`?"),
        ("^Failed > 3", "did you mean `failed`?"),
        ("^fail_rate > 0.1", "did you mean `failed_rate`?"),
        ("^recent_failure_rate(3) > 0.1", "did you mean `recent_failed_rate`?"),
        ("failed > 1 or ^error > 3", "did you mean `errors`?"),
        ("failed > ^inf", "there is no name `inf`; the names are total, succeeded"),
        ("^__import__('os').system('x')", "there is no name `__import__`"),
        ("^lambda: 1 > 0", "there is no name `lambda`"),
        ("^True", "there is no name `True`"),
        ("^failed + 1", "`failed + 1` is a number, not a condition: compare it, as in `failed + 1 > 0`"),
        ("failed > 1 and ^(settled)", "is a number, not a condition"),
        ("^failed or settled > 1", "is a number, not a condition"),
        ("not ^failed", "is a number, not a condition"),
        ("^(failed > 1) + 1 > 2", "`failed > 1` is a condition, not a number"),
        ("1 + ^(failed > 1) > 2", "is a condition, not a number"),
        ("^(failed > 1) > 2", "is a condition, not a number"),
        ("2 > ^(failed > 1 or total > 2)", "is a condition, not a number"),
        ("-^(failed > 1) > 2", "is a condition, not a number"),
        ("^(failed > 1) == (not total > 1)", "is a condition, not a number"),
        ("1 < failed ^< 10", "comparisons do not chain: write `1 < failed and failed < ...`"),
        ("failed > ^not settled", "expected a name, a number or a parenthesis here, found `not`"),
        ("failed >^", "found the end"),
        ("failed > 1 and^ ", "found the end"),
        ("failed > ^+1", "found `+`"),
        ("(failed > 1^", "a closing parenthesis is missing here"),
        ("failed > 1^)", "this parenthesis was never opened"),
        ("failed > 1 ^AND settled > 1", "did you mean `and`?"),
        ("failed > 1 ^settled", "expected `and`, `or` or the end here, found `settled`"),
        ("failed > 1 ^2", "expected `and`, `or` or the end here, found `2`"),
        ("failed > 1 ^if total > 1", "found `if`"),
        ("failed > 1 ^&& total > 1", "`&&` has no place here: write `and`"),
        ("failed > 1 ^| total > 1", "write `or`"),
        ("^!failed > 1", "write `not`"),
        ("failed ^= 1", "write `==` to compare"),
        ("failed_rate > 5^%", "write 0.05 for 5 %"),
        ("^failed_rate > 5", "a rate goes from 0 to 1"),
        ("^2 < recent_failed_rate(9)", "a rate goes from 0 to 1"),
        ("failed ^≥ 3", "GREATER-THAN OR EQUAL TO (U+2265), has no place here: write `>=`"),
        ("failed^\u00a0> 3", "NO-BREAK SPACE (U+00A0) has no place here: write an ordinary space"),
        ("^ｆailed > 3", "FULLWIDTH LATIN SMALL LETTER F (U+FF46)"),
        ("fa^ıled > 3", "DOTLESS"),
        ("failed > ^\x00", "(U+0000) has no place here"),
        ("failed > ^\ud800", "(U+D800) has no place here"),
        ("failed > 1^# never", "`#` has no place here"),
        ("failed > 1^; total > 2", "`;` has no place here"),
        ("failed^.real > 1", "`.` has no place here"),
        ("failed *^* 2 > 1", "found `*`"),
        ("failed > 1^,000", "write numbers without separators: 1000"),
        ("failed > 1^_000", "write numbers without separators: 1000"),
        ("stalled > 5^m", "durations are in seconds"),
        ("failed > 0^x10", "a number stands alone"),
        ("failed > 1^٣", "a number stands alone"),
        ("failed > 1.2^.3", "a number stands alone"),
        ("failed > ^1e999", "it must be finite"),
        ("failed > ^" + "9" * 400, "it must be finite"),
        ("failed > ^1e-999", "it would count as 0"),
        ("errors ^> 3", 'write errors["TimeoutError"]'),
        ("errors[^ValueError] > 3", "in quotation marks"),
        ("errors[^3] > 3", "in quotation marks"),
        ('errors[^""] > 3', "is its class name"),
        ('errors[^" E"] > 3', "is its class name"),
        ('errors[^"a\nb"] > 3', "is its class name"),
        ("errors[^'a\"b'] > 3", "is its class name"),
        (f'errors[^"{"E" * 201}"] > 3', "is its class name"),
        ('errors["E"^) > 3', "a closing bracket is missing here"),
        ('errors[^"E] > 3', "no closing quotation mark"),
        ('errors[^"a\\b"] > 3', "no closing quotation mark"),
        ('failed == ^"3"', "a quoted text stands only in"),
        ("recent_failed_rate ^> 0.1", "write recent_failed_rate(500)"),
        ("recent_failed_rate(^0) > 0.1", "a whole number from 1 to 100,000"),
        ("recent_failed_rate(^1.5) > 0.1", "a whole number from 1 to 100,000"),
        ("recent_failed_rate(^100001) > 0.1", "a whole number from 1 to 100,000"),
        ("recent_failed_rate(^" + "9" * 500 + ") > 0.1", "a whole number from 1 to 100,000"),
        ("recent_failed_rate(^failed) > 0.1", "a whole number from 1 to 100,000"),
        ("recent_failed_rate(500 ^> 0.1", "a closing parenthesis is missing here"),
        ("failed^(3) > 1", "takes nothing in brackets"),
        ("failed^[3] > 1", "takes nothing in brackets"),
        ("(" * 32 + "^(failed > 1" + ")" * 33, "nested deeper than 32 levels"),
        ("not " * 32 + "^not failed > 1", "nested deeper than 32 levels"),
        ("-" * 32 + "^-1 > 2", "nested deeper than 32 levels"),
        ("1" + "+1" * 31 + "^+1 > 2", "nested deeper than 32 levels"),
        ("failed > 1" + " or failed > 1" * 150, "at most 2,000 characters, this one 2,110"),
        ("failed>1" + " or(failed>1)" * 153 + "^", "with spaces in place this one has 2,152"),
    ],
)  # fmt: skip
def test_what_is_no_expression_is_refused_at_its_place(expression: str, reason: str) -> None:
    text = expression.replace("^", "")
    place = expression.find("^") if "^" in expression else 2000
    with pytest.raises(ExpressionError) as caught:
        parse(text, field="enough_when")
    error = caught.value
    assert reason in error.reason
    assert (error.text, error.position, error.field) == (text, place, "enough_when")
    assert str(error).startswith("enough_when: ")
    assert str(error).endswith("^")


def test_the_limits_themselves_are_allowed() -> None:
    assert str(parse("(" * 32 + "failed > 1" + ")" * 32)) == "failed > 1"
    assert str(parse("failed > 1" + " or failed > 1" * 142)).count("or") == 142
    assert parse("recent_failed_rate(100000) > 1").windows() == {100_000}


@pytest.mark.parametrize("thing", [None, 3, True, ["failed > 1"], {"max_failed": 3}])
def test_only_text_is_an_expression(thing: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^fail_if: expected an expression, got "):
        parse(thing, field="fail_if")


# Objects


@pytest.mark.parametrize(
    ("switch", "expression"),
    [
        (ks.FailedCount(10), "failed >= 10"),
        (ks.SucceededCount(1), "succeeded >= 1"),
        (ks.UnknownCount(3), "unknown >= 3"),
        (ks.SettledCount(3), "settled >= 3"),
        (ks.NotStartedCount(3), "not_started >= 3"),
        (ks.FailedRate(0.05, min_sample=200), "failed_rate > 0.05 and settled >= 200"),
        (ks.FailedRate(0), "failed_rate > 0"),
        (ks.RecentFailedRate(0.2, window=500), "recent_failed_rate(500) > 0.2"),
        (ks.ConsecutiveFailed(20), "consecutive_failed >= 20"),
        (ks.ErrorCount("TimeoutError", 5), 'errors["TimeoutError"] >= 5'),
        (ks.ErrorCount(TimeoutError, 5), 'errors["TimeoutError"] >= 5'),
        (ks.CompletedBatches(3), "completed_batches >= 3"),
        (ks.FailedBatches(3), "failed_batches >= 3"),
        (ks.CrashedBatches(3), "crashed_batches >= 3"),
        (ks.CrashedAttempts(3), "crashed_attempts >= 3"),
        (ks.SettledBatches(3), "settled_batches >= 3"),
        (ks.ConsecutiveFailedBatches(3), "consecutive_failed_batches >= 3"),
        (ks.Elapsed(timedelta(hours=2)), "elapsed > 7200"),
        (ks.Stalled(600), "stalled > 600"),
        (ks.Stalled(0.5), "stalled > 0.5"),
        (
            ks.FailedCount(10) | ks.FailedRate(0.05, min_sample=200),
            "failed >= 10 or (failed_rate > 0.05 and settled >= 200)",
        ),
        (
            (ks.FailedCount(10) | ks.Stalled(9)) & ~ks.SettledCount(5),
            "(failed >= 10 or stalled > 9) and not (settled >= 5)",
        ),
    ],
)
def test_objects_print_as_and_equal_their_expression(switch: Switch, expression: str) -> None:
    assert str(switch) == expression
    assert switch == parse(expression)
    assert hash(switch) == hash(parse(expression))
    assert len({switch, parse(expression)}) == 1


def test_every_plain_count_has_an_object() -> None:
    made = (getattr(ks, name) for name in ks.__all__)
    classes = [c for c in made if isinstance(c, type) and issubclass(c, Switch) and c is not Switch]
    examples: dict[type, tuple[Any, ...]] = {ks.ErrorCount: ("E", 1), ks.FailedRate: (0.5,)}
    mentioned = {n for c in classes if c is not ks.RecentFailedRate for n in c(*examples.get(c, (1,))).names()}
    assert mentioned == set(NAMES) - {"total"}


@pytest.mark.parametrize(
    "build",
    [
        lambda: ks.FailedCount(0),
        lambda: ks.FailedCount(True),
        lambda: ks.FailedCount(1.5),  # type: ignore[arg-type]
        lambda: ks.FailedCount(10**5000),
        lambda: ks.FailedRate(1),
        lambda: ks.FailedRate(-0.1),
        lambda: ks.FailedRate(float("nan")),
        lambda: ks.FailedRate(True),
        lambda: ks.FailedRate("0.5"),  # type: ignore[arg-type]
        lambda: ks.FailedRate(0.5, min_sample=0),
        lambda: ks.RecentFailedRate(0.5, window=0),
        lambda: ks.RecentFailedRate(0.5, window=100_001),
        lambda: ks.ErrorCount("", 1),
        lambda: ks.ErrorCount('E"', 1),
        lambda: ks.ErrorCount("E", 0),
        lambda: ks.Stalled(-1),
        lambda: ks.Stalled(float("inf")),
        lambda: ks.Stalled(True),
        lambda: ks.Elapsed("5m"),  # type: ignore[arg-type]
        lambda: ks.Elapsed(timedelta(seconds=-1)),
    ],
)
def test_objects_out_of_range_are_refused(build: Callable[[], Switch]) -> None:
    with pytest.raises(ConfigurationError, match=r"must be|class name") as caught:
        build()
    assert len(str(caught.value)) < 150


def test_grouping_by_hand_does_not_matter() -> None:
    a, b, c = ks.FailedCount(1), ks.Stalled(2), ks.Elapsed(3)
    assert (a | b) | c == a | (b | c)
    assert (a & b) & c == a & (b & c)


def test_a_switch_differs_from_its_text_and_from_another_switch() -> None:
    assert parse("failed > 1") != "failed > 1"
    assert parse("failed > 1") != parse("failed > 2")


def test_a_switch_combines_with_switches_only() -> None:
    with pytest.raises(TypeError):
        ks.FailedCount(1) | "stalled > 5"  # type: ignore[operator]
    with pytest.raises(TypeError):
        ks.FailedCount(1) & 3  # type: ignore[operator]


def test_python_or_between_switches_is_caught() -> None:
    with pytest.raises(TypeError, match="combine by"):
        ks.FailedCount(10) or ks.Stalled(600)


def test_a_switch_does_not_change() -> None:
    switch = ks.FailedCount(1)
    with pytest.raises(AttributeError):
        switch.count = 3  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        switch._text = "failed >= 2"
    with pytest.raises(AttributeError):
        del switch._tree
    assert str(switch) == "failed >= 1"


def test_a_switch_travels_as_its_text() -> None:
    switch = DEFAULT_KILL_SWITCH | ks.ErrorCount("E", 2)
    assert pickle.loads(pickle.dumps(switch)) == switch
    assert copy.copy(switch) is switch
    assert copy.deepcopy(switch) is switch


def test_combining_beyond_what_can_be_read_again_is_refused() -> None:
    deep: Switch = ks.FailedCount(1)
    with pytest.raises(ExpressionError, match="combined deeper than 32 levels"):  # noqa: PT012 - the loop is the case
        for _ in range(40):
            deep = ~deep
    assert parse(str(deep)) == deep
    long: Switch = ks.FailedCount(1)
    with pytest.raises(ExpressionError, match="at most 2,000 characters, combined"):  # noqa: PT012
        for _ in range(200):
            long = long | ks.FailedCount(1)
    assert parse(str(long)) == long


# Limits and defaults


@pytest.mark.parametrize(
    ("limits", "expression"),
    [
        ({"max_failed": 0}, "failed > 0"),
        ({"max_failed": 10}, "failed > 10"),
        ({"max_failed_rate": 0.05, "min_sample": 200}, "failed_rate > 0.05 and settled >= 200"),
        ({"max_failed_rate": 0.05}, "failed_rate > 0.05"),
        ({"max_failed": 9, "max_failed_rate": 0, "min_sample": 5}, "failed > 9 or (failed_rate > 0 and settled >= 5)"),
    ],
)
def test_limits_trip_when_exceeded(limits: dict[str, Any], expression: str) -> None:
    assert str(from_limits(**limits)) == expression


@pytest.mark.parametrize(
    "limits",
    [{}, {"max_failed": -1}, {"max_failed": 1.5}, {"max_failed_rate": 5}, {"max_failed_rate": 0.1, "min_sample": 0}],
)
def test_limits_out_of_range_name_the_parameter(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        from_limits(**limits)
    assert caught.value.field == "kill_switch"


def test_the_defaults_are_those_of_the_documentation() -> None:
    default = "(failed_rate > 0.5 and settled >= 50) or crashed_batches >= 3 or stalled > 3600"
    assert str(DEFAULT_KILL_SWITCH) == default
    assert str(DEFAULT_FAIL_IF) == "failed + unknown + not_started > 0"
    fresh = Counts({"settled": 0, "crashed_batches": 0, "stalled": 0})
    assert DEFAULT_KILL_SWITCH.evaluate(fresh) is False
    assert DEFAULT_FAIL_IF.evaluate(Counts({"failed": 0, "unknown": 0, "not_started": 1}))


# Prefecto's switches: its own examples on Prefect's own states


def test_any_failure_trips() -> None:
    switch = ks.AnyFailedSwitch()
    switch.raise_if_triggered(states.Completed())
    for state in states.Failed(), states.Crashed():
        with pytest.raises(ks.KillSwitchError, match=r"^Failed task detected\.$") as caught:
            switch.raise_if_triggered(state)
        assert caught.value.ks is switch


def test_a_count_trips_when_reached() -> None:
    switch = ks.CountSwitch(2)
    switch.raise_if_triggered(states.Failed())
    switch.raise_if_triggered(states.Completed())
    with pytest.raises(ks.KillSwitchError, match="2 failed tasks detected"):
        switch.raise_if_triggered(states.Crashed())


def test_a_rate_trips_when_reached() -> None:
    switch = ks.RateSwitch(3, 0.5)
    switch.raise_if_triggered(states.Failed())
    switch.raise_if_triggered(states.Completed())
    with pytest.raises(ks.KillSwitchError, match=r"Failure rate reached 0\.5 after 3 tasks"):
        switch.raise_if_triggered(states.Crashed())


def test_a_rate_that_is_just_met_trips() -> None:
    switch = ks.RateSwitch(2, 0.5)
    switch.raise_if_triggered(states.Completed())
    with pytest.raises(ks.KillSwitchError, match="after 2 tasks"):
        switch.raise_if_triggered(states.Failed())


def test_asking_does_not_count() -> None:
    for switch in ks.CountSwitch(2), ks.RateSwitch(2, 0.5):
        assert [switch.should_flip_switch(states.Failed()) for _ in range(5)] == [False] * 5
        switch.raise_if_triggered(states.Failed())
        assert switch.should_flip_switch(states.Failed())
    assert ks.CountSwitch(1).should_flip_switch(states.Completed()) is False


def test_a_switch_that_tripped_stays_tripped() -> None:
    switch = ks.CountSwitch(1)
    for state in states.Failed(), states.Completed():
        with pytest.raises(ks.KillSwitchError):
            switch.raise_if_triggered(state)


def test_a_subclass_needs_raise_if_triggered_only() -> None:
    class Never(ks.KillSwitch):
        def raise_if_triggered(self, state: ks.TaskState) -> None:
            pass

    Never().raise_if_triggered(states.Failed())
    with pytest.raises(NotImplementedError, match="Never"):
        Never().should_flip_switch(states.Failed())
    with pytest.raises(TypeError):
        ks.KillSwitch()  # type: ignore[abstract]


@pytest.mark.parametrize(
    "build",
    [
        lambda: ks.CountSwitch(0),
        lambda: ks.CountSwitch(1.5),  # type: ignore[arg-type]
        lambda: ks.RateSwitch(0, 0.5),
        lambda: ks.RateSwitch(3, 0),
        lambda: ks.RateSwitch(3, 1.1),
        lambda: ks.RateSwitch(3, True),
        lambda: ks.RateSwitch(3, "0.5"),  # type: ignore[arg-type]
    ],
)
def test_prefectos_switches_refuse_nonsense(build: Callable[[], ks.KillSwitch]) -> None:
    with pytest.raises(ConfigurationError, match="must be"):
        build()


def test_the_error_survives_a_pickle() -> None:
    error = pickle.loads(pickle.dumps(ks.KillSwitchError("Failed task detected.", ks.CountSwitch(2))))
    assert (str(error), error.ks.max_count) == ("Failed task detected.", 2)


# The page in docs/

PAGE = (Path(__file__).parents[2] / "docs" / "kill-switch.md").read_text(encoding="utf-8")


def test_the_page_lists_every_name_with_its_meaning() -> None:
    section = PAGE.split("## Names")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", section, re.MULTILINE))
    forms = {'errors["TimeoutError"]': FORMS["errors"], "recent_failed_rate(500)": FORMS["recent_failed_rate"]}
    assert rows == {**NAMES, **forms}


def test_the_page_shows_expressions_in_the_form_they_are_printed_in() -> None:
    blocks = re.findall(r"^```expression\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    expressions = [line for block in blocks for line in block.splitlines()]
    assert expressions
    assert [str(parse(e)) for e in expressions] == expressions
    for default in DEFAULT_KILL_SWITCH, DEFAULT_FAIL_IF:
        assert f"| `{default}` |" in PAGE


def test_the_page_shows_the_error_that_is_really_given() -> None:
    shown = re.search(r"^```text\n(.*?)\n```", PAGE, re.MULTILINE | re.DOTALL)
    assert shown is not None
    with pytest.raises(ExpressionError) as caught:
        parse("faild >= 10")
    assert str(caught.value) == shown[1]
