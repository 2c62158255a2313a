"""Switches as values: what `parse` gives, what the objects build, and how they combine.

`FailedCount(10)` is a class for its signature's sake; what it builds is a `Switch` like any other, equal to the one
parsed from its text, and in a pickle it is that text.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from orchestrator.core.killswitch.language import read_condition, refuse_type_name
from orchestrator.core.killswitch.tree import (
    MAX_DEPTH,
    MAX_LENGTH,
    MAX_WINDOW,
    Comparison,
    Condition,
    Errors,
    Leaf,
    Name,
    Not,
    Number,
    Readings,
    RecentRate,
    all_of,
    any_of,
    depth,
    leaves,
    read,
    truth,
    why,
    written,
)
from orchestrator.errors import ConfigurationError, ExpressionError


class Switch:
    """A condition over the counts of a job: immutable, hashable, and equal to every switch of the same expression.

    Combine with `|`, `&` and `~`. `str()` is its expression, and `parse(str(switch)) == switch`.
    """

    __slots__ = ("_text", "_tree")
    _text: str
    _tree: Condition

    def __init__(self, tree: Condition) -> None:
        """From a tree; users call `parse` or one of the objects.

        Raises:
            ExpressionError: the expression is too long or too deep to be read again.
        """
        text = written(tree)
        if depth(tree) > MAX_DEPTH:
            raise ExpressionError(f"combined deeper than {MAX_DEPTH} levels", text=text, position=0)
        if len(text) > MAX_LENGTH:
            reason = f"an expression has at most {MAX_LENGTH:,} characters, combined this one has {len(text):,}"
            raise ExpressionError(reason, text=text, position=MAX_LENGTH)
        object.__setattr__(self, "_tree", tree)
        object.__setattr__(self, "_text", text)

    def evaluate(self, readings: Readings) -> bool | None:
        """True, False, or None for unknown (a missing value, a division by zero). Only True trips."""
        return truth(self._tree, readings)

    def clause(self, readings: Readings) -> str | None:
        """The smallest part of the expression that makes it true, as an expression; None when it is not true.

        Of `a or b` the true one, of `a and b` both.
        """
        return written(why(self._tree, readings, True)) if self.evaluate(readings) else None

    def numbers(self, readings: Readings) -> dict[str, float]:
        """The value of all that the expression looks at, by its text; what is missing is absent.

        Whole numbers come as `int`, so that a report says 10 failed items and not 10.0.
        """
        found = {written(leaf): read(leaf, readings) for leaf in self._leaves()}
        return {name: int(v) if v == int(v) else v for name, v in found.items() if v is not None}

    def names(self) -> frozenset[str]:
        """The plain names it mentions, e.g. {"failed", "stalled"}."""
        return frozenset(leaf.name for leaf in self._leaves() if isinstance(leaf, Name))

    def windows(self) -> frozenset[int]:
        """The n of each `recent_failed_rate(n)`: how many last outcomes have to be remembered."""
        return frozenset(leaf.window for leaf in self._leaves() if isinstance(leaf, RecentRate))

    def error_types(self) -> frozenset[str]:
        """The type of each `errors["..."]`: these have to be counted however rare they are."""
        return frozenset(leaf.type_name for leaf in self._leaves() if isinstance(leaf, Errors))

    def _leaves(self) -> list[Leaf]:
        return list(leaves(self._tree))

    def __or__(self, other: Switch) -> Switch:
        return Switch(any_of((self._tree, other._tree))) if isinstance(other, Switch) else NotImplemented

    def __and__(self, other: Switch) -> Switch:
        return Switch(all_of((self._tree, other._tree))) if isinstance(other, Switch) else NotImplemented

    def __invert__(self) -> Switch:
        return Switch(Not(self._tree))

    def __bool__(self) -> bool:
        # `FailedCount(10) or Stalled(600)` would silently be the first of the two.
        raise TypeError("a switch has no truth of its own: combine by | & ~, ask by evaluate(), test for None by `is`")

    def __eq__(self, other: object) -> bool:
        return self._tree == other._tree if isinstance(other, Switch) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._tree)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"parse({self._text!r})"

    def __reduce__(self) -> tuple[Callable[[str], Switch], tuple[str]]:
        return parse, (self._text,)

    def __copy__(self) -> Switch:
        return self

    def __deepcopy__(self, memo: object) -> Switch:
        return self

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a switch does not change: cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a switch does not change: cannot delete {name!r}")


def parse(expression: str | Switch, *, field: str | None = "kill_switch") -> Switch:
    """The switch of an expression; a switch is given back as it is.

    Args:
        expression: e.g. `failed >= 10 or (failed_rate > 0.05 and settled >= 200)`.
        field: The job parameter it was given for, named in errors.

    Raises:
        ExpressionError: it is no expression; the text points at the place.
        ConfigurationError: it is no text at all.
    """
    if isinstance(expression, Switch):
        return expression
    if not isinstance(expression, str):
        raise ConfigurationError(f"expected an expression, got {type(expression).__name__}", field=field)
    return Switch(read_condition(expression, field=field))


def _at_least(name: str, count: int) -> Condition:
    return Comparison(">=", Name(name), Number(_whole("count", count)))


class FailedCount(Switch):
    """`failed >= count`."""

    __slots__ = ()

    def __init__(self, count: int) -> None:
        super().__init__(_at_least("failed", count))


class SucceededCount(Switch):
    """`succeeded >= count`; what `enough_when` usually is."""

    __slots__ = ()

    def __init__(self, count: int) -> None:
        super().__init__(_at_least("succeeded", count))


class UnknownCount(Switch):
    """`unknown >= count`."""

    __slots__ = ()

    def __init__(self, count: int) -> None:
        super().__init__(_at_least("unknown", count))


class SettledCount(Switch):
    """`settled >= count`."""

    __slots__ = ()

    def __init__(self, count: int) -> None:
        super().__init__(_at_least("settled", count))


class NotStartedCount(Switch):
    """`not_started >= count`."""

    __slots__ = ()

    def __init__(self, count: int) -> None:
        super().__init__(_at_least("not_started", count))


class FailedRate(Switch):
    """`failed_rate > rate and settled >= min_sample`.

    Args:
        rate: 0 <= rate < 1; 0.05 is 5 %.
        min_sample: Settled items before the rate counts; 1 (the default) leaves the second half out.
    """

    __slots__ = ()

    def __init__(self, rate: float, *, min_sample: int = 1) -> None:
        above = Comparison(">", Name("failed_rate"), Number(_rate("rate", rate)))
        sample = Comparison(">=", Name("settled"), Number(_whole("min_sample", min_sample)))
        super().__init__(above if min_sample == 1 else all_of((above, sample)))


class RecentFailedRate(Switch):
    """`recent_failed_rate(window) > rate`: the rate among the last `window` settled items."""

    __slots__ = ()

    def __init__(self, rate: float, *, window: int) -> None:
        if _whole("window", window) > MAX_WINDOW:
            raise ConfigurationError(f"window must be at most {MAX_WINDOW:,}, got {window:,}")
        super().__init__(Comparison(">", RecentRate(window), Number(_rate("rate", rate))))


class ConsecutiveFailed(Switch):
    """`consecutive_failed >= count`: so many failures without a success between them."""

    __slots__ = ()

    def __init__(self, count: int) -> None:
        super().__init__(_at_least("consecutive_failed", count))


class ErrorCount(Switch):
    """`errors["TimeoutError"] >= count`.

    Args:
        error: Class name of the error, or the class itself.
        count: Failed items with it, >= 1.
    """

    __slots__ = ()

    def __init__(self, error: str | type[BaseException], count: int) -> None:
        name = error.__name__ if isinstance(error, type) else error
        if (reason := refuse_type_name(name)) is not None:
            raise ConfigurationError(f"{reason}; got {name!r}")
        super().__init__(Comparison(">=", Errors(name), Number(_whole("count", count))))


class CompletedBatches(Switch):
    """`completed_batches >= count`."""

    __slots__ = ()

    def __init__(self, count: int) -> None:
        super().__init__(_at_least("completed_batches", count))


class FailedBatches(Switch):
    """`failed_batches >= count`."""

    __slots__ = ()

    def __init__(self, count: int) -> None:
        super().__init__(_at_least("failed_batches", count))


class CrashedBatches(Switch):
    """`crashed_batches >= count`: batches lost for good, all attempts used up."""

    __slots__ = ()

    def __init__(self, count: int) -> None:
        super().__init__(_at_least("crashed_batches", count))


class CrashedAttempts(Switch):
    """`crashed_attempts >= count`: attempts lost, even when a new attempt follows."""

    __slots__ = ()

    def __init__(self, count: int) -> None:
        super().__init__(_at_least("crashed_attempts", count))


class SettledBatches(Switch):
    """`settled_batches >= count`."""

    __slots__ = ()

    def __init__(self, count: int) -> None:
        super().__init__(_at_least("settled_batches", count))


class ConsecutiveFailedBatches(Switch):
    """`consecutive_failed_batches >= count`."""

    __slots__ = ()

    def __init__(self, count: int) -> None:
        super().__init__(_at_least("consecutive_failed_batches", count))


class Elapsed(Switch):
    """`elapsed > duration`, in seconds or as a timedelta."""

    __slots__ = ()

    def __init__(self, duration: float | timedelta) -> None:
        super().__init__(Comparison(">", Name("elapsed"), Number(_seconds(duration))))


class Stalled(Switch):
    """`stalled > duration`, in seconds or as a timedelta."""

    __slots__ = ()

    def __init__(self, duration: float | timedelta) -> None:
        super().__init__(Comparison(">", Name("stalled"), Number(_seconds(duration))))


def from_limits(max_failed: int | None = None, max_failed_rate: float | None = None, min_sample: int = 1) -> Switch:
    """The switch of the simple form of the `kill_switch` parameter: trips when a limit is *exceeded*.

    Args:
        max_failed: Failed items that are tolerated, >= 0; None for no limit.
        max_failed_rate: Tolerated share of failures among settled items, 0 <= rate < 1; None for no limit.
        min_sample: Settled items before the rate counts, >= 1.

    Raises:
        ConfigurationError: neither limit is given, or one is out of range.
    """
    try:
        rate = (
            None
            if max_failed_rate is None
            else FailedRate(_rate("max_failed_rate", max_failed_rate), min_sample=min_sample)
        )
        if max_failed is None:
            if rate is None:
                raise ConfigurationError("give max_failed, max_failed_rate, or both")
            return rate
        count = Switch(Comparison(">", Name("failed"), Number(_whole("max_failed", max_failed, least=0))))
        return count if rate is None else count | rate
    except ConfigurationError as e:
        raise ConfigurationError(str(e), field="kill_switch") from None


def _whole(name: str, number: int, *, least: int = 1) -> float:
    if type(number) is not int or not least <= number <= 10**15:
        shown = repr(number) if not isinstance(number, int) or abs(number) <= 10**15 else "one out of range"
        raise ConfigurationError(f"{name} must be a whole number >= {least}, got {shown}")
    return float(number)


def _rate(name: str, rate: float) -> float:
    # 1 is refused too: no rate is above it, so such a switch could never trip.
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ConfigurationError(f"{name} must be from 0 to below 1 (0.05 is 5 %), got {rate!r}")
    return float(rate)


def _seconds(duration: float | timedelta) -> float:
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 1e15:
        raise ConfigurationError(f"a duration must be a finite number of seconds >= 0 or a timedelta, got {duration!r}")
    return float(seconds)


DEFAULT_KILL_SWITCH = FailedRate(0.5) & SettledCount(50) | CrashedBatches(3) | Stalled(3600)
DEFAULT_FAIL_IF = parse("failed + unknown + not_started > 0", field="fail_if")
