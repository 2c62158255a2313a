"""The kill switches of prefecto, by the same names, for its users: told one task state after another.

What is kept: names, arguments, `>=`, crashed counts as failed, the texts. What is mended: only `raise_if_triggered`
counts; `should_flip_switch` asks what it would do and changes nothing, however often it is asked.

Source: prefecto/concurrency/kill_switch.py, github.com/dominictarro/prefecto.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from orchestrator.errors import ConfigurationError, OrchestratorError


class TaskState(Protocol):
    """What is asked of a state; Prefect's `State` is one."""

    def is_failed(self) -> bool: ...

    def is_crashed(self) -> bool: ...


class KillSwitchError(OrchestratorError):
    """A kill switch tripped; `ks` is that switch.

    Attributes:
        futures, completed, failed, failure: What a mapping had by then (see `BatchTask.map`); empty elsewhere.
    """

    futures: Sequence[Any] = ()
    completed: Sequence[Any] = ()
    failed: Sequence[Any] = ()
    failure: Any = None

    def __init__(self, message: str, ks: Any) -> None:
        super().__init__(message)
        self.ks = ks

    def __reduce__(self) -> tuple[type[KillSwitchError], tuple[str, Any]]:
        return type(self), (str(self), self.ks)


class KillSwitch(ABC):
    """Base of kill switches that are told of each state; a subclass needs `raise_if_triggered` only."""

    def should_flip_switch(self, state: TaskState) -> bool:
        """Whether `raise_if_triggered` would raise for this state now; a question that counts nothing."""
        raise NotImplementedError(f"{type(self).__name__} only knows raise_if_triggered")

    @abstractmethod
    def raise_if_triggered(self, state: TaskState) -> None:
        """Take notice of one more state.

        Raises:
            KillSwitchError: the switch trips, at this state or at an earlier one.
        """


class AnyFailedSwitch(KillSwitch):
    """Trips at the first task that failed or crashed."""

    def should_flip_switch(self, state: TaskState) -> bool:
        return _is_failure(state)

    def raise_if_triggered(self, state: TaskState) -> None:
        if self.should_flip_switch(state):
            raise KillSwitchError("Failed task detected.", self)


class CountSwitch(KillSwitch):
    """Trips once `max_count` tasks have failed or crashed.

    Args:
        max_count: Failures at which it trips, >= 1.

    Raises:
        ConfigurationError: `max_count` is out of range.
    """

    def __init__(self, max_count: int) -> None:
        if type(max_count) is not int or max_count < 1:
            raise ConfigurationError(f"max_count must be a whole number >= 1, got {max_count!r}")
        self.max_count = max_count
        self._failed = 0

    def should_flip_switch(self, state: TaskState) -> bool:
        return self._failed + _is_failure(state) >= self.max_count

    def raise_if_triggered(self, state: TaskState) -> None:
        self._failed += _is_failure(state)
        if self._failed >= self.max_count:
            raise KillSwitchError(f"{self.max_count} failed tasks detected.", self)


class RateSwitch(KillSwitch):
    """Trips when at least `max_fail_rate` of the tasks so far failed or crashed.

    Args:
        min_sample: Tasks before the rate counts, >= 1.
        max_fail_rate: Rate at which it trips, 0 < rate <= 1.

    Raises:
        ConfigurationError: one of them is out of range.
    """

    def __init__(self, min_sample: int, max_fail_rate: float) -> None:
        if type(min_sample) is not int or min_sample < 1:
            raise ConfigurationError(f"min_sample must be a whole number >= 1, got {min_sample!r}")
        if isinstance(max_fail_rate, bool) or not isinstance(max_fail_rate, int | float) or not 0 < max_fail_rate <= 1:
            raise ConfigurationError(
                f"max_fail_rate must be above 0 and at most 1, got {max_fail_rate!r}; "
                "AnyFailedSwitch trips at the first failure"
            )
        self.min_sample = min_sample
        self.max_fail_rate = max_fail_rate
        self._seen = 0
        self._failed = 0

    def should_flip_switch(self, state: TaskState) -> bool:
        return self._trips(self._seen + 1, self._failed + _is_failure(state))

    def raise_if_triggered(self, state: TaskState) -> None:
        self._seen += 1
        self._failed += _is_failure(state)
        if self._trips(self._seen, self._failed):
            raise KillSwitchError(f"Failure rate reached {self.max_fail_rate} after {self._seen} tasks.", self)

    def _trips(self, seen: int, failed: int) -> bool:
        return seen >= self.min_sample and failed / seen >= self.max_fail_rate


def _is_failure(state: TaskState) -> bool:
    return state.is_failed() or state.is_crashed()
