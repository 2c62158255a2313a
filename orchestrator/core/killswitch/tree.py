"""What an expression is made of, and what it means: nodes, values, truth, text.

Two sorts of nodes, and the parser lets no one take the place of the other: a *quantity* has a number or none, a
*condition* is true, false or unknown. `and` / `or` hold two or more operands and never themselves directly
(`a or (b or c)` is `a or b or c`), so that grouping by hand changes neither equality nor text.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from orchestrator.core.killswitch.names import ERRORS, RATES, RECENT

MAX_LENGTH = 2_000  # characters of an expression, as written and as printed
MAX_DEPTH = 32  # levels of nesting, so that no walk over a tree can exhaust the stack
MAX_WINDOW = 100_000  # items a recent rate may look back on: they are kept in memory


class Readings(Protocol):
    """What a switch may look at: the counts of a job at one moment."""

    def number(self, name: str) -> float | None:
        """The value of a plain name (a key of `NAMES`); None when there is none yet."""
        ...

    def errors(self, type_name: str) -> int:
        """Failed items whose error has that type."""
        ...

    def recent_failed_rate(self, n: int) -> float | None:
        """Share of failures among the last n items that ended; None until there are n."""
        ...


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number >= 0 as written in the expression."""

    value: float


@dataclass(frozen=True, slots=True)
class Name:
    """A plain name: a key of `NAMES`."""

    name: str


@dataclass(frozen=True, slots=True)
class Errors:
    """`errors["TimeoutError"]`."""

    type_name: str


@dataclass(frozen=True, slots=True)
class RecentRate:
    """`recent_failed_rate(500)`."""

    window: int


@dataclass(frozen=True, slots=True)
class Negative:
    """`-x`."""

    operand: Quantity


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """`left op right`; a chain groups to the left, as in school."""

    op: Literal["+", "-", "*", "/"]
    left: Quantity
    right: Quantity


@dataclass(frozen=True, slots=True)
class Comparison:
    """`left op right`, each a quantity."""

    op: Literal["<", "<=", ">", ">=", "==", "!="]
    left: Quantity
    right: Quantity


@dataclass(frozen=True, slots=True)
class Not:
    operand: Condition


@dataclass(frozen=True, slots=True)
class And:
    """Built by `all_of` alone."""

    operands: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Built by `any_of` alone."""

    operands: tuple[Condition, ...]


Leaf: TypeAlias = Name | Errors | RecentRate
Quantity: TypeAlias = Number | Leaf | Negative | Arithmetic
Condition: TypeAlias = Comparison | Not | And | Or
Node: TypeAlias = Quantity | Condition

_ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_COMPARISON: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


def all_of(operands: Iterable[Condition]) -> Condition:
    """Their conjunction, flat; of one operand, that operand."""
    flat = tuple(o for x in operands for o in (x.operands if isinstance(x, And) else (x,)))
    return flat[0] if len(flat) == 1 else And(flat)


def any_of(operands: Iterable[Condition]) -> Condition:
    """Their disjunction, flat; of one operand, that operand."""
    flat = tuple(o for x in operands for o in (x.operands if isinstance(x, Or) else (x,)))
    return flat[0] if len(flat) == 1 else Or(flat)


def children(node: Node) -> tuple[Node, ...]:
    match node:
        case And(operands) | Or(operands):
            return operands
        case Not(operand) | Negative(operand):
            return (operand,)
        case Arithmetic(_, left, right) | Comparison(_, left, right):
            return (left, right)
        case _:
            return ()


def depth(node: Node) -> int:
    """Levels of the tree, 1 for a leaf. The caller keeps trees shallow: see `MAX_DEPTH`."""
    return 1 + max((depth(c) for c in children(node)), default=0)


def leaves(node: Node) -> Iterator[Leaf]:
    """What the expression looks at, in the order it is written, repetitions included."""
    if isinstance(node, Name | Errors | RecentRate):
        yield node
    for child in children(node):
        yield from leaves(child)


def size(node: Node) -> int:
    """Number of comparisons in it."""
    return isinstance(node, Comparison) or sum(size(c) for c in children(node))


# What it means


def read(leaf: Leaf, readings: Readings) -> float | None:
    """The value of a leaf; None when it is missing or no finite number."""
    match leaf:
        case Name(name):
            value = readings.number(name)
        case Errors(type_name):
            value = readings.errors(type_name)
        case RecentRate(window):
            value = readings.recent_failed_rate(window)
    return value if value is not None and math.isfinite(value) else None


def value(quantity: Quantity, readings: Readings) -> float | None:
    """Its number; None when a part is missing, on division by zero, and when the result is not finite."""
    match quantity:
        case Number(number):
            return number
        case Negative(operand):
            negated = value(operand, readings)
            return None if negated is None else -negated
        case Arithmetic(op, left, right):
            a, b = value(left, readings), value(right, readings)
            if a is None or b is None or (op == "/" and b == 0):
                return None
            result = _ARITHMETIC[op](a, b)
            return result if math.isfinite(result) else None
        case _:
            found = read(quantity, readings)
            return None if found is None else float(found)


def truth(condition: Condition, readings: Readings) -> bool | None:
    """True, False, or None for unknown, by Kleene's logic."""
    match condition:
        case Comparison(op, left, right):
            a, b = value(left, readings), value(right, readings)
            return None if a is None or b is None else _COMPARISON[op](a, b)
        case Not(operand):
            answer = truth(operand, readings)
            return None if answer is None else not answer
        case And(operands):
            return _settle((truth(o, readings) for o in operands), decisive=False)
        case Or(operands):
            return _settle((truth(o, readings) for o in operands), decisive=True)


def _settle(answers: Iterable[bool | None], *, decisive: bool) -> bool | None:
    """One decisive answer settles it; else one unknown leaves it unknown; else it is the other one."""
    unknown = False
    for answer in answers:
        if answer is decisive:
            return decisive
        unknown = unknown or answer is None
    return None if unknown else not decisive


def why(condition: Condition, readings: Readings, answer: bool) -> Condition:
    """The smallest part of a condition that alone makes it `answer`, which it must be.

    Of several operands that suffice, the one with the fewest comparisons; of equals, the first as written.
    """
    match condition:
        case Comparison():
            return condition
        case Not(operand):
            return Not(why(operand, readings, not answer))
        case And(operands):
            join, decisive = all_of, False
        case Or(operands):
            join, decisive = any_of, True
    if answer is not decisive:
        return join(why(o, readings, answer) for o in operands)
    return min((why(o, readings, answer) for o in operands if truth(o, readings) is answer), key=size)


def is_rate_beyond_one(comparison: Comparison) -> bool:
    """A fraction compared with a number above 1: somebody thought of percent, and it would never trip."""
    for rate, bound in (comparison.left, comparison.right), (comparison.right, comparison.left):
        is_rate = isinstance(rate, RecentRate) or (isinstance(rate, Name) and rate.name in RATES)
        if is_rate and isinstance(bound, Number) and bound.value > 1:
            return True
    return False


# How it is written

_SUM, _PRODUCT, _UNARY, _ATOM = 1, 2, 3, 4


def written(node: Node) -> str:
    """The one way to write it: single spaces, `and` inside `or` in parentheses, no other needless ones."""
    match node:
        case Number(number):
            return str(int(number)) if number.is_integer() and number < 1e15 else repr(number)
        case Name(name):
            return name
        case Errors(type_name):
            return f'{ERRORS}["{type_name}"]'
        case RecentRate(window):
            return f"{RECENT}({window})"
        case Negative(operand):
            return "-" + _within(operand, _UNARY)
        case Arithmetic(op, left, right):
            level = _level(node)
            return f"{_within(left, level)} {op} {_within(right, level + 1)}"
        case Comparison(op, left, right):
            return f"{written(left)} {op} {written(right)}"
        case Not(operand):
            return "not " + (written(operand) if isinstance(operand, Not) else f"({written(operand)})")
        case And(operands):
            return " and ".join(f"({written(o)})" if isinstance(o, Or) else written(o) for o in operands)
        case Or(operands):
            return " or ".join(f"({written(o)})" if isinstance(o, And) else written(o) for o in operands)


def _level(quantity: Quantity) -> int:
    match quantity:
        case Arithmetic("+" | "-"):
            return _SUM
        case Arithmetic():
            return _PRODUCT
        case Negative():
            return _UNARY
        case _:
            return _ATOM


def _within(quantity: Quantity, level: int) -> str:
    """Its text, in parentheses when it binds less than its place asks for."""
    return written(quantity) if _level(quantity) >= level else f"({written(quantity)})"
