"""The user's work, bound to one run's parameters: what the windows call for each item."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.batchrun.context import ItemContext
from orchestrator.core.model import Item


@dataclass(frozen=True, slots=True)
class Work:
    """One function of an item (or, `per="batch"`, of the list of all items' values).

    Args:
        function: The user's function, or what submits their task or calls their flow: returns the result, an
            awaitable of it when `is_async`; a future, or a collection of futures, stands for its results.
        parameters: The keyword-only parameters of this run.
        wants_context: Pass an `ItemContext` (a list of them with `per="batch"`) as the second argument.
        job, batch, attempt: For that context.
    """

    function: Callable[..., Any]
    is_async: bool = False
    wants_context: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)
    job: str = ""
    batch: int = 0
    attempt: int = 0

    def __call__(self, item: Item) -> Any:
        if self.wants_context:
            return self.function(item.value, self.context(item), **self.parameters)
        return self.function(item.value, **self.parameters)

    def on_all(self, items: list[Item]) -> Any:
        """Call a function of the whole slice."""
        values = [item.value for item in items]
        if self.wants_context:
            return self.function(values, [self.context(item) for item in items], **self.parameters)
        return self.function(values, **self.parameters)

    def context(self, item: Item) -> ItemContext:
        return ItemContext(item.key, item.index, self.job, self.batch, self.attempt)
