"""`BatchTask`: many runs of one task inside one flow run, a bounded number at a time, until a kill switch trips.

prefecto's API on Prefect 3: the same names and arguments, with only the import changed. What differs is said in
docs/patterns/batch-task.md.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from itertools import count
from queue import SimpleQueue
from typing import Any, Generic, ParamSpec, TypeVar

from prefect import Task, allow_failure, get_run_logger, unmapped
from prefect.client.schemas.objects import State
from prefect.exceptions import MissingContextError
from prefect.futures import PrefectFuture, PrefectFutureList
from prefect.states import Crashed
from prefect.utilities.annotations import opaque, quote
from prefect.utilities.callables import (
    collapse_variadic_parameters,
    explode_variadic_parameter,
    get_call_parameters,
    parameters_to_args_kwargs,
)
from prefect.utilities.engine import resolve_inputs_sync

from orchestrator.core.killswitch import (
    AnyFailedSwitch,
    CountSwitch,
    KillSwitch,
    KillSwitchError,
    RateSwitch,
    Switch,
    TaskState,
    parse,
)
from orchestrator.core.model import Counts
from orchestrator.core.tally import Tally
from orchestrator.errors import ConfigurationError

P = ParamSpec("P")
R = TypeVar("R")
Future = PrefectFuture[Any]
Annotated = (allow_failure, opaque, quote)
_END = object()


class BatchTask(Generic[P, R]):
    """Maps a task over iterables with at most `size` of its runs at a time.

        @flow
        def adding() -> list[int]:
            return BatchTask(add, 100, CountSwitch(10)).map(range(5000), unmapped(1)).result()

    Args:
        task: The Prefect task.
        size: Most runs in flight, >= 1.
        kill_switch: Asked at every completion, the last one included: one of prefecto's switches or a subclass of
            `KillSwitch`, or a `Switch` (or its text) over item counts such as `"failed >= 10 or failed_rate > 0.2"`.
        barrier: Wait for all `size` runs before the next ones begin, as prefecto does; False: one ends, one begins.

    Raises:
        ConfigurationError: `size` is no whole number >= 1, or the switch's text is malformed.
        TypeError: `kill_switch` is none.
    """

    def __init__(
        self,
        task: Task[P, R],
        size: int,
        kill_switch: KillSwitch | Switch | str | None = None,
        *,
        barrier: bool = False,
    ) -> None:
        if type(size) is not int or size < 1:
            raise ConfigurationError(f"must be a whole number >= 1, got {size!r}", field="size")
        if isinstance(kill_switch, str):
            kill_switch = parse(kill_switch)
        if isinstance(kill_switch, Switch):
            _checked(kill_switch)
        if kill_switch is not None and not isinstance(kill_switch, KillSwitch | Switch):
            raise TypeError(f"Expected 'kill_switch' to be a subclass of 'KillSwitch', got {type(kill_switch)}.")
        self.task, self.size, self.barrier = task, size, barrier
        self._kill_switch = kill_switch

    def map(self, *args: Any, **kwargs: Any) -> PrefectFutureList[R]:
        """Run the task once per element of the given iterables, which are taken in step.

        Without a kill switch it returns once the last run has been submitted, with one it waits for the last run.

        Args:
            args, kwargs: As the task takes them; each an iterable (generators are read as runs end), or `unmapped`.

        Returns:
            One future per element, in input order.

        Raises:
            KillSwitchError: the switch tripped. No further run was begun, and those that had been submitted but not
                begun were taken back. `.futures` has those that began, `.completed` and `.failed` those of them that
                had ended by then, `.failure` the one that tripped it.
            ValueError: an argument is no iterable, or they differ in length.
        """
        mapping = _Mapping(self.task, self.size, self._kill_switch, self.barrier, args, kwargs)
        done: SimpleQueue[Future] = SimpleQueue()
        while mapping.submit(done.put):
            mapping.take(done.get())
        return mapping.futures

    async def amap(self, *args: Any, **kwargs: Any) -> PrefectFutureList[R]:
        """As `map`, for async flows: the flow's loop goes on meanwhile."""
        mapping = _Mapping(self.task, self.size, self._kill_switch, self.barrier, args, kwargs)
        loop, done = asyncio.get_running_loop(), asyncio.Queue[Future]()

        def tell(future: Future) -> None:
            try:
                loop.call_soon_threadsafe(done.put_nowait, future)
            except RuntimeError:
                pass  # the loop is closed: nobody waits any more

        while mapping.submit(tell):
            mapping.take(await done.get())
        return mapping.futures


# prefecto's users find everything in one module.
__all__ = ["AnyFailedSwitch", "BatchTask", "CountSwitch", "KillSwitch", "KillSwitchError", "RateSwitch"]


class _Mapping:
    """One call of `map`: what was submitted, what runs, what ended."""

    def __init__(
        self,
        task: Task[Any, Any],
        size: int,
        kill_switch: KillSwitch | Switch | None,
        barrier: bool,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._task, self._size, self._barrier = task, size, barrier
        self._elements = _Elements(task.fn, get_call_parameters(task.fn, args, kwargs, apply_defaults=False))
        self._switch = _asked(kill_switch, self._elements.length)
        self._calls = iter(self._elements)
        self._exhausted = self._elements.length == 0
        self._in_flight = 0
        self._taken: list[tuple[Future, State[Any]]] = []
        self._log = _logger()
        self.futures: PrefectFutureList[Any] = _list()

    def submit(self, tell: Callable[[Future], None]) -> bool:
        """Fill the window; whether a completion is to be waited for then."""
        if not (self._barrier and self._in_flight):
            while self._in_flight < self._size and not self._exhausted:
                self._submit_next(tell)
        if self._exhausted and self._switch is None:
            return False
        return self._in_flight > 0

    def _submit_next(self, tell: Callable[[Future], None]) -> None:
        parameters = next(self._calls, None)
        if parameters is None:
            self._exhausted = True
            return
        if len(self.futures) % self._size == 0:
            self._log.debug("Mapping %s batch %s.", self._task.name, self._batch())
        args, kwargs = parameters_to_args_kwargs(self._task.fn, parameters)
        future = self._task.submit(*args, **kwargs, wait_for=self._elements.upstream or None)
        self.futures.append(future)
        self._in_flight += 1
        future.add_done_callback(tell)

    def _batch(self) -> str:
        number = len(self.futures) // self._size + 1
        length = self._elements.length
        return str(number) if length is None else f"{number} of {-(-length // self._size)}"

    def take(self, future: Future) -> None:
        """One run ended.

        Raises:
            KillSwitchError: the switch tripped.
        """
        self._in_flight -= 1
        state = _state_of(future)
        self._taken.append((future, state))
        if self._switch is None:
            return
        try:
            self._switch.raise_if_triggered(state)
        except KillSwitchError as error:
            error.futures = self._take_back()
            error.completed = [f for f, s in self._taken if s.is_completed()]
            error.failed = [f for f, s in self._taken if s.is_failed() or s.is_crashed()]
            error.failure = future if state.is_failed() or state.is_crashed() else None
            raise

    def _take_back(self) -> PrefectFutureList[Any]:
        """Cancel what no thread has begun; what is left."""
        waiting = [getattr(future, "wrapped_future", None) for future in self.futures]
        kept = [f for f, w in zip(self.futures, waiting, strict=True) if not (w is not None and w.cancel())]
        return _list(kept)


class _Elements:
    """The calls that a mapping makes: the iterables in step, with everything else in each of them.

    Attributes:
        length: How many there are; None while only generators could say.
        upstream: Futures whose results are mapped over: each run depends on them.
    """

    def __init__(self, function: Callable[..., Any], parameters: Mapping[str, Any]) -> None:
        self._function = function
        if not parameters:
            raise ValueError("Must provide at least one iterable.")
        self.upstream = [value for value in parameters.values() if isinstance(value, PrefectFuture)]
        self._still: dict[str, Any] = {}
        self._moving: dict[str, Iterable[Any]] = {}
        self._wrapped: dict[str, Any] = {}
        resolved = resolve_inputs_sync(dict(parameters), max_depth=0)
        for name, value in explode_variadic_parameter(function, resolved).items():
            self._sort(name, value)
        if not self._moving:
            raise ValueError("Must provide at least one non-unmapped iterable.")
        self.length = self._common_length()

    def _sort(self, name: str, value: Any) -> None:
        if isinstance(value, Annotated):
            self._wrapped[name] = value
            value = value.unwrap()
        if isinstance(value, unmapped):
            self._still[name] = value.value
        elif isinstance(value, Iterable):
            self._moving[name] = value
        else:
            raise ValueError(f"Expected '{name}' to be an iterable.")

    def _common_length(self) -> int | None:
        sized = {name: len(value) for name, value in self._moving.items() if isinstance(value, Sized)}
        if not sized:
            return None
        first, length = next(iter(sized.items()))
        for name, other in sized.items():
            if other != length:
                raise ValueError(
                    f"Expected all iterables to be of length {length} like '{first}'. '{name}' is length {other}."
                )
        return length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        iterators = {name: iter(values) for name, values in self._moving.items()}
        for number in count():
            values = {name: next(iterator, _END) for name, iterator in iterators.items()}
            ended = [name for name, value in values.items() if value is _END]
            if ended:
                if len(ended) < len(values):
                    longer = next(name for name in values if name not in ended)
                    raise ValueError(
                        f"Expected all iterables to be of length {number} like '{ended[0]}'. "
                        f"'{longer}' is length {number + 1} or more."
                    )
                return
            yield self._call(values)

    def _call(self, values: dict[str, Any]) -> dict[str, Any]:
        call = self._still | values
        for name, annotation in self._wrapped.items():
            call[name] = annotation.rewrap(call[name])
        return collapse_variadic_parameters(self._function, call)


def _list(futures: Iterable[Future] = ()) -> PrefectFutureList[Any]:
    return PrefectFutureList(futures)  # type: ignore[abstract] # Prefect makes them so itself


class _Expression(KillSwitch):
    """A `Switch` that is told of one state after the other, for one call of `map`."""

    def __init__(self, switch: Switch, length: int | None) -> None:
        if length is None and "total" in switch.names():
            raise ConfigurationError("a generator's length is not known: 'total' cannot be asked", field="kill_switch")
        self._switch = switch
        self._tally = Tally(length or 0, windows=switch.windows())
        self._tally.started = self._tally.last_progress = self._tally.now = time.monotonic()
        self._errors: Counter[str] = Counter()
        self._counts = Counts()

    def raise_if_triggered(self, state: TaskState) -> None:
        assert isinstance(state, State)
        failed = state.is_failed() or state.is_crashed()
        self._errors.update([_error_type(state)] if failed else [])
        old = self._counts
        self._counts = Counts(
            succeeded=old.succeeded + (not failed), failed=old.failed + failed,
            trailing_failures=old.trailing_failures + 1 if failed else 0, errors=dict(self._errors),
        )  # fmt: skip
        self._tally.now = time.monotonic()
        self._tally.update(old, self._counts)
        if (clause := self._switch.clause(self._tally)) is not None:
            numbers = ", ".join(f"{name} = {value}" for name, value in self._switch.numbers(self._tally).items())
            raise KillSwitchError(f"{clause} ({numbers}).", self._switch)


def _asked(kill_switch: KillSwitch | Switch | None, length: int | None) -> KillSwitch | None:
    return _Expression(kill_switch, length) if isinstance(kill_switch, Switch) else kill_switch


def _checked(switch: Switch) -> Switch:
    """The switch itself, unless it asks for what a mapping does not have.

    Raises:
        ConfigurationError: it mentions batches or items without an outcome.
    """
    known = {"total", "succeeded", "failed", "settled", "failed_rate", "consecutive_failed", "elapsed", "stalled"}
    if strange := sorted(switch.names() - known):
        raise ConfigurationError(f"{strange[0]!r} says nothing of tasks; there are: {', '.join(sorted(known))}",
                                 field="kill_switch")  # fmt: skip
    return switch


def _error_type(state: State[Any]) -> str:
    """The class of the exception that failed a run, as `errors["..."]` names it."""
    try:
        error = state.result(raise_on_failure=False, _sync=True)  # type: ignore[call-overload]
    except Exception:  # noqa: BLE001 - a result that cannot be read says nothing
        return "Error"
    return type(error).__name__ if isinstance(error, BaseException) else "Error"


def _state_of(future: Future) -> State[Any]:
    """How an ended run ended; a thread that died without a state crashed."""
    try:
        future.wait()
        return future.state
    except Exception as error:  # noqa: BLE001 - whatever kept the run from having a state
        return Crashed(message=f"{type(error).__name__}: {error}")


def _logger() -> logging.Logger | logging.LoggerAdapter[Any]:
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger(__name__)
