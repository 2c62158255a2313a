"""What a flow run's process writes to its output, once nobody reads it any more.

A worker reads the output of the processes it starts through pipes. When it is killed they go on, and the first line
that one logs ends it: the console that Prefect logs to takes a broken pipe for the end of the program and raises
SystemExit, in whatever code wrote that line. Source: measured; prefect logging/handlers.py `PrefectConsoleHandler`,
3.8.8; rich console.py `on_broken_pipe`, 15.0. A plain `print` of an item would raise BrokenPipeError and fail the item.
"""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Iterator
from typing import Any

OUTPUTS = (1, 2)  # standard output and standard error


def is_started_by_worker() -> bool:
    """Whether this process was started for a flow run; elsewhere output belongs to whoever runs the program.

    Source: prefect runtime/flow_run.py `get_id` reads the same variable, 3.8.8.
    """
    return bool(os.environ.get("PREFECT__FLOW_RUN_ID"))


def outlive_readers() -> None:
    """From now on a broken pipe ends no logging console's process. Calling it again changes nothing."""
    if not is_started_by_worker():
        return
    for console in _consoles():
        console.on_broken_pipe = drop_broken_outputs


def drop_broken_outputs() -> None:
    """Let what is written to an output without a reader go nowhere; quick when all have theirs."""
    if not is_started_by_worker() or not hasattr(select, "poll"):
        return
    poll = select.poll()
    for output in OUTPUTS:
        poll.register(output, 0)  # a lost reader is told unasked
    for output, event in poll.poll(0):
        if event & select.POLLERR:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, output)
            os.close(nowhere)


def _consoles() -> Iterator[Any]:
    """What handlers of any logger print to, by its shape: Prefect's handler and Rich's own have it."""
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in list(logging.root.manager.loggerDict))]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        console = getattr(handler, "console", None)
        if hasattr(console, "on_broken_pipe"):
            yield console
