"""Commands that carry jobs out: `plan run resume`."""

from __future__ import annotations

import json as json_format
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from types import FrameType
from typing import Any, TypeVar

from orchestrator.cli.terminal import INTERRUPTED, say
from orchestrator.core.model import StopCause, StopMode, StopRecord
from orchestrator.errors import ConfigurationError, OrchestratorError
from orchestrator.store import JobFolder

T = TypeVar("T")


class LeftError(OrchestratorError):
    """A second Ctrl-C: the command ends at once; the stop that the first one wrote stays in force."""

    exit_code = INTERRUPTED


def parameters_of(pairs: list[str] | None, field: str = "param") -> dict[str, Any]:
    """`--param name=value` as a mapping; a value that is JSON is taken as such, anything else as text.

    Raises:
        ConfigurationError: a pair has no name or no `=`.
    """
    found: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigurationError(f"{pair!r} is not of the form NAME=VALUE", field=field)
        try:
            found[name] = json_format.loads(text)
        except ValueError:
            found[name] = text
    return found


def deployment_of(text: str | None) -> str | dict[str, str]:
    """`--deployment`: a name, or a JSON mapping of groups to names.

    Raises:
        ConfigurationError: it is missing, or looks like JSON and is not a mapping of texts.
    """
    if not text:
        raise ConfigurationError("is needed: --deployment flow-name/deployment-name", field="deployment")
    if not text.lstrip().startswith("{"):
        return text
    try:
        mapping = json_format.loads(text)
    except ValueError as e:
        raise ConfigurationError(f"is not a JSON mapping: {e}", field="deployment") from e
    if not all(isinstance(v, str) for v in mapping.values()):
        raise ConfigurationError("must map group values to flow-name/deployment-name", field="deployment")
    return dict(mapping)


def stoppable(work: Callable[[], T], folder: Callable[[], JobFolder | None]) -> T:
    """Do the work in a thread; Ctrl-C (or SIGTERM) stops the job through its folder and goes on waiting for its report.

    Args:
        folder: The job's folder; None as long as the job does not exist, then an interrupt just leaves.

    Raises:
        LeftError: interrupted before the job existed, or a second time.
    """
    future: Future[T] = Future()

    def carry_out() -> None:
        try:
            future.set_result(work())
        except BaseException as e:  # noqa: BLE001 - whatever ended the work reaches the caller
            future.set_exception(e)

    interrupts = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 1:
            raise LeftError("left; the job is being stopped, `orchestrator status` shows how far it is")
        if (found := folder()) is None:
            raise LeftError("interrupted before the job was created")
        found.request_stop(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "Ctrl-C", "command line"))
        say("stopping the job: child runs are being cancelled; Ctrl-C again leaves without waiting for the report")

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        threading.Thread(target=carry_out, name="job", daemon=True).start()
        while True:
            with suppress(TimeoutError):
                return future.result(timeout=0.2)  # short, so that a signal is handled soon
            if future.done():
                return future.result()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
