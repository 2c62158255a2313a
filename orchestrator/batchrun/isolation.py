"""Finding the item that keeps killing its run, and going on without it.

A run that dies (out of memory, a crash of the interpreter, `os._exit`) cannot say which item did it. Once two runs of
a batch have died, items are run one by one, and before each one the run writes down which it is. If it dies again,
that word is what it leaves: the next run fails the item and goes on with the others.

Not all items need to go alone. Items start in order, so those that were in progress when a run died are among the
first ones without an outcome, as many as there are at once; on object stores besides those whose outcomes were not
sent yet. Once they are through, the others run as always; if one of those kills the run, the next run begins again.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.core.model import Item

DEATHS = 2  # a run that dies once is most likely its machine's fault
UNSENT_OUTCOMES = 1000  # most outcomes an object store's ledger holds back


@dataclass(frozen=True, slots=True)
class Order:
    """How the items of an attempt are to be run.

    Args:
        killers: Failed without being run: each was alone in progress when a run died.
        alone: Run one by one, each written down before it begins.
        together: Run as the flow's author chose, afterwards.
    """

    killers: Sequence[Item]
    alone: Sequence[Item]
    together: Sequence[Item]


def with_signal(how: str) -> str:
    """ "Process exited with status code: -11" with the signal's name behind it: " (SIGSEGV)"."""
    found = re.search(r"status code:? -(\d{1,3})$", how)
    try:
        return f"{how} ({signal.Signals(int(found[1])).name})" if found else how
    except ValueError:
        return how


def order(items: Sequence[Item], died: Mapping[int, int | None], *, item_concurrency: int, appends: bool) -> Order:
    """The order of a batch's remaining items.

    Args:
        died: Earlier attempts that left no last word -> the item each had in progress alone, None when unknown.
        appends: The ledger keeps each outcome as it happens; False on object stores.
    """
    named = {index for index in died.values() if index is not None}
    killers = [item for item in items if item.index in named]
    left = [item for item in items if item.index not in named]
    if len(died) < DEATHS:
        return Order(killers, (), left)
    # One at a time costs nothing where that is what the author chose: then all of them are written down.
    suspects = len(left) if item_concurrency == 1 else item_concurrency + (0 if appends else UNSENT_OUTCOMES)
    return Order(killers, left[:suspects], left[suspects:])
