"""The language of stopping, for any expression and any readings.

Two judges that are not ours: Python itself (every expression of the language is one of Python, and with nothing
missing both must agree), and the meaning of *unknown* (an answer that is given must hold whatever is missing).
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hypothesis import assume, example, given
from hypothesis import strategies as st

from orchestrator.core.killswitch import MAX_LENGTH, NAMES, Switch, parse
from orchestrator.errors import ExpressionError

ERROR_TYPES = ("TimeoutError", "E", "größe.Fehler")
WINDOWS = (1, 20)


@dataclass(frozen=True)
class Counts:
    """Readings as a table; what is not in it is missing."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    types: Mapping[str, int] = field(default_factory=dict)
    recent: Mapping[int, float] = field(default_factory=dict)

    def number(self, name: str) -> float | None:
        return self.numbers.get(name)

    def errors(self, type_name: str) -> int:
        return self.types[type_name]

    def recent_failed_rate(self, n: int) -> float | None:
        return self.recent.get(n)


# Sources as people may write them: blanks and needless parentheses anywhere, precedence left to the reader.

# Nothing so small that a quotient overflows: for us that is unknown, for Python infinite.
fractions = st.just(0.0) | st.floats(1e-9, 1)
blanks = st.sampled_from(["", " ", "\n "])
numerals = st.one_of(
    st.integers(0, 12).map(str),
    fractions.map(repr),
    st.sampled_from([".5", "2.", "1e3", "1E-2", "1e+20"]),
)
leaves = st.one_of(
    numerals,
    st.sampled_from(sorted(NAMES)),
    st.sampled_from(ERROR_TYPES).map(lambda t: f"errors['{t}']"),
    st.sampled_from(WINDOWS).map(lambda n: f"recent_failed_rate({n})"),
)
quantities = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(inner, blanks, st.sampled_from("+-*/"), blanks, inner).map("".join),
        inner.map("({})".format),
        inner.map("-{}".format),
    ),
    max_leaves=5,
)
comparisons = st.tuples(
    quantities, blanks, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), blanks, quantities
).map("".join)
sources = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from([" and ", " or ", "\tor\n"]), inner).map("".join),
        inner.map("( {})".format),
        inner.map("not {}".format),
    ),
    max_leaves=6,
)


def readable(source: str) -> Switch:
    """The switch of a generated source; a few are refused for good reason (a rate above 1)."""
    try:
        return parse(source)
    except ExpressionError as e:
        assume("a rate goes from 0 to 1" not in str(e))
        raise


switches = sources.map(readable)

values = st.one_of(st.integers(0, 9), fractions, st.sampled_from([0, 1, 200]))
types = st.fixed_dictionaries({t: st.integers(0, 5) for t in ERROR_TYPES})
full = st.builds(
    Counts,
    st.fixed_dictionaries(dict.fromkeys(NAMES, values)),
    types,
    st.fixed_dictionaries(dict.fromkeys(WINDOWS, fractions)),
)


def without(counts: Counts, missing: set[Any]) -> Counts:
    return Counts(
        {n: v for n, v in counts.numbers.items() if n not in missing},
        counts.types,
        {n: v for n, v in counts.recent.items() if n not in missing},
    )


gaps = st.sets(st.sampled_from([*sorted(NAMES), *WINDOWS]))


@given(sources, full)
def test_python_gives_the_same_answer(source: str, counts: Counts) -> None:
    switch = readable(source)
    names: dict[str, Any] = {n: float(v) for n, v in counts.numbers.items()}
    names |= {"errors": counts.types, "recent_failed_rate": counts.recent.__getitem__, "__builtins__": {}}
    try:
        expected = eval(compile(f"({source.strip()})", "", "eval"), names)
    except ZeroDivisionError:
        # Python stops there; we may know the answer all the same, or not.
        return
    assert switch.evaluate(counts) is expected


@given(switches)
def test_what_is_printed_reads_as_the_same(switch: Switch) -> None:
    again = parse(str(switch))
    assert again == switch
    assert hash(again) == hash(switch)
    assert str(again) == str(switch)
    assert pickle.loads(pickle.dumps(switch)) == switch


@given(switches, full, gaps)
def test_an_answer_holds_whatever_is_missing(switch: Switch, counts: Counts, missing: set[Any]) -> None:
    answer = switch.evaluate(without(counts, missing))
    assert answer is None or switch.evaluate(counts) is answer


@given(switches, switches, full, gaps)
def test_algebra_follows_kleene(a: Switch, b: Switch, counts: Counts, missing: set[Any]) -> None:
    counts = without(counts, missing)
    x, y = a.evaluate(counts), b.evaluate(counts)
    either = True if True in (x, y) else None if None in (x, y) else False
    both = False if False in (x, y) else None if None in (x, y) else True
    assert (a | b).evaluate(counts) is either
    assert (a & b).evaluate(counts) is both
    assert (~a).evaluate(counts) is (None if x is None else not x)
    assert (~(a | b)).evaluate(counts) is (~a & ~b).evaluate(counts)


@given(switches, switches, switches)
def test_what_is_combined_prints_as_it_reads(a: Switch, b: Switch, c: Switch) -> None:
    assert (a | b) | c == a | (b | c)
    assert (a & b) & c == a & (b & c)
    for combined in a | b & c, (a | b) & c, ~a | b, ~(a & b), ~~a:
        assert parse(str(combined)) == combined


@given(switches, full, gaps)
def test_the_clause_alone_would_have_tripped(switch: Switch, counts: Counts, missing: set[Any]) -> None:
    counts = without(counts, missing)
    clause = switch.clause(counts)
    assert (clause is not None) == (switch.evaluate(counts) is True)
    if clause is not None:
        assert len(clause) <= len(str(switch))
        part = parse(clause)
        assert part.evaluate(counts) is True
        assert part.clause(counts) == clause
        assert part.numbers(counts).items() <= switch.numbers(counts).items()


@given(switches, full, gaps)
def test_the_numbers_are_all_that_matters(switch: Switch, counts: Counts, missing: set[Any]) -> None:
    """A job that only has what the switch says it looks at gives the same answer."""
    counts = without(counts, missing)
    seen = Counts(
        {n: v for n, v in counts.numbers.items() if n in switch.names()},
        {t: n for t, n in counts.types.items() if t in switch.error_types()},
        {n: v for n, v in counts.recent.items() if n in switch.windows()},
    )
    assert switch.evaluate(seen) is switch.evaluate(counts)
    assert set(switch.numbers(counts).values()) <= {
        *seen.numbers.values(),
        *seen.types.values(),
        *seen.recent.values(),
    }


pieces = [*NAMES, "errors", "recent_failed_rate", "and", "or", "not", '"E"', "1", "0.5", "2e9", "nan", "lambda"]
tokens = st.sampled_from([*pieces, *"+-*/<>()[]=&',", "<=", ">=", "==", "!=", "\x00", "é", "\ud800"])


@given(st.one_of(st.text(max_size=80), st.lists(tokens, max_size=25).map(" ".join), st.lists(tokens).map("".join)))
@example("(" * MAX_LENGTH)
@example("not " * 500)
@example("-" * MAX_LENGTH)
@example("1+" * 999 + "1>0")
@example("failed" + " > 1 and failed" * 120)
@example("9" * MAX_LENGTH)
def test_any_text_is_an_expression_or_refused_at_a_place_in_it(text: str) -> None:
    refused = None
    try:
        assert parse(str(parse(text))) == parse(text)
    except ExpressionError as e:
        refused = e
    assert refused is None or (refused.text == text and 0 <= refused.position <= len(text))
