"""The recorder: the one place where an item's end becomes a record, a count and a line in the log.

An item ends once: whoever takes it out of `in progress` first (its own thread, or the watch over its timeout) writes
its outcome; what comes later is ignored. Record and count change under one lock, so that an end record written at any
moment agrees with the outcomes before it.
"""

from __future__ import annotations

import logging
import os
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

from orchestrator.batchrun.door import Door
from orchestrator.batchrun.gate import Gate
from orchestrator.core.model import Counts, EndReason, Failure, Item, ItemOutcome
from orchestrator.errors import StoreUnavailableError
from orchestrator.store.jsonl import NotJsonError, encode_json
from orchestrator.store.records import OutcomeRecord

_TEXT_CHARS = 1_000
_TYPE_CHARS = 100
_WARNINGS = 20
_TRACEBACK_CHARS = 8_000
ADVICE = "or write it to storage and return where it is"


# Where outcomes go: the ledger, or a list when there is no job folder. May raise when it cannot write.
Sink = Callable[[OutcomeRecord], None]


class ResultError(Exception):
    """A result that cannot be kept; the text says what to do instead."""


class Recorder:
    """Counts and writes outcomes; thread safe.

    Args:
        sink: Writes one outcome durably before it returns.
        carried: Counts of the batch that earlier attempts left.
        total: Items of the batch, carried ones included.
        gate: Closed (`LEDGER_FAILED`) when the sink fails.
    """

    def __init__(self, sink: Sink, gate: Gate, door: Door, *, total: int, result_max_bytes: int,
                 carried: Counts | None = None) -> None:  # fmt: skip
        self.total = total
        self._sink, self._gate, self._door, self._max = sink, gate, door, result_max_bytes
        carried = carried or Counts()
        self._succeeded, self._failed = carried.succeeded, carried.failed
        self._trailing, self._first = carried.trailing_failures, None
        if (first := carried.first_failure) is not None:
            self._first = Failure(first.index, door.mask(first.key), first.type, door.mask(first.text))
        self._errors: Counter[str] = Counter(carried.errors)
        self._running: dict[int, Item] = {}
        # Called before an item begins, while items run one by one; when it cannot write, the item does not begin.
        self.before_start: Callable[[Item], None] | None = None
        self._closed = False
        self._lock = threading.RLock()
        self._warned = 0
        self._debug = door.logger.isEnabledFor(logging.DEBUG)

    # ------------------------------------------------------------------ an item's way

    def start(self, item: Item) -> bool:
        """The item is in progress from now on; False when nothing may start any more."""
        self._running[item.index] = item
        # Looked at after the item is marked: an end record written in between names it, at worst for nothing.
        if self._gate.reason is not None or self._closed:
            self._running.pop(item.index, None)
            return False
        if self.before_start is not None:
            try:
                self.before_start(item)
            except StoreUnavailableError as error:
                self._running.pop(item.index, None)
                self._gate.close(EndReason.LEDGER_FAILED, f"the job folder cannot be written: {self.text_of(error)}")
                return False
        return True

    def withdraw(self, item: Item) -> None:
        """The item was marked as started, and nothing was done with it."""
        self._running.pop(item.index, None)

    def succeed(self, item: Item, result: Any, tries: int, seconds: float) -> bool:
        """Keep a result; False when the item ended before. A result that cannot be kept fails the item."""
        try:
            result = self._kept(result)
        except ResultError as error:
            return self.fail(item, error, tries, seconds)
        outcome = OutcomeRecord(item.index, item.key, ItemOutcome.SUCCEEDED, tries, None, None, result, seconds)
        with self._lock:
            if self._closed or self._running.pop(item.index, None) is None:
                return False
            if self._write(outcome):
                self._succeeded += 1
                self._trailing = 0
        return True

    def fail(self, item: Item, error: BaseException, tries: int, seconds: float) -> bool:
        """Write that the item failed; False when it ended before."""
        type_name = "ResultNotKept" if isinstance(error, ResultError) else printable(type(error).__name__)[:_TYPE_CHARS]
        text = self.text_of(error)
        outcome = OutcomeRecord(item.index, item.key, ItemOutcome.FAILED, tries, type_name, text, None, seconds)
        with self._lock:
            if self._closed or self._running.pop(item.index, None) is None:
                return False
            if self._write(outcome):
                self._failed += 1
                self._trailing += 1
                self._errors[type_name] += 1
                if self._first is None:
                    # A key is the user's data in the ledger; this copy of it goes to Prefect.
                    self._first = Failure(item.index, self._door.mask(item.key), type_name, text)
        self._say(item, error, type_name, text, tries)
        return True

    # ------------------------------------------------------------------ questions

    def counts(self) -> Counts:
        """Of the batch so far, those of earlier attempts included."""
        with self._lock:
            return Counts(
                succeeded=self._succeeded,
                failed=self._failed,
                trailing_failures=self._trailing,
                errors=dict(self._errors.most_common(10)),
                first_failure=self._first,
            )

    def close(self) -> tuple[Counts, list[int]]:
        """Nothing is written from now on: the counts, and the items in progress. Asking again gives the same."""
        with self._lock:
            self._closed = True
            counts = self.counts()
            return counts, sorted(self._running)

    def text_of(self, error: BaseException) -> str:
        """The error as one masked line of at most 1,000 characters."""
        try:
            said = str(error)
        except Exception:  # noqa: BLE001 - a user's __str__ may raise anything
            said = "(the error's text could not be read)"
        # Masked before it is put on one line, for a secret may have several, and before it is cut: half a secret is a
        # secret too.
        said = self._door.mask(said[: 100 * _TEXT_CHARS]) or type(error).__name__
        said = " ".join(said.split())
        if isinstance(error, SystemExit):
            said = f"the function called sys.exit({error.code!r})"
        return printable(self._door.mask(said[: 20 * _TEXT_CHARS]))[:_TEXT_CHARS]

    # ------------------------------------------------------------------ inside

    def _write(self, outcome: OutcomeRecord) -> bool:
        try:
            self._sink(outcome)
        except Exception as error:  # noqa: BLE001 - whatever keeps an outcome from being written ends the run
            self._running[outcome.index] = Item(outcome.index, outcome.key, None)  # it has no outcome after all
            why = f"outcomes could not be written: {self.text_of(error)}"
            if self._gate.close(EndReason.LEDGER_FAILED, why):
                self._door.logger.error("No further item is started: %s", why)
            return False
        return True

    def _kept(self, result: Any) -> Any:
        if result is None or result is True or result is False:
            return result
        try:
            size = len(encode_json(result))
        except NotJsonError as error:
            raise ResultError(f"the result cannot be kept, {error}; {ADVICE}") from error
        if size > self._max:
            advice = "write it to storage and return where it is (the limit is ORCHESTRATOR_RESULT_MAX_BYTES)"
            raise ResultError(f"the result is {size:,} bytes as JSON, and at most {self._max:,} are kept: {advice}")
        return result

    def _say(self, item: Item, error: BaseException, type_name: str, text: str, tries: int) -> None:
        log = self._door.logger
        self._warned += 1
        if self._warned > _WARNINGS and not self._debug:
            return
        times = "" if tries == 1 else f" after {tries} tries"
        label = item.key if item.key == str(item.index) else f"{item.index} ({self._door.mask(item.key)[:200]})"
        line = f"Item {label} failed{times}: {type_name}: {text}{_place(error)}"
        if self._warned <= _WARNINGS:
            log.warning("%s", line)
            if self._warned == _WARNINGS:
                log.warning("Further failed items are counted, and shown one by one at log level DEBUG only")
        else:
            log.debug("%s", line)
        if self._debug and error.__traceback__ is not None:
            trace = "".join(traceback.format_exception(error))
            log.debug("%s", self._door.mask(trace)[-_TRACEBACK_CHARS:])


def printable(text: str) -> str:
    """The text without lone surrogates, which neither a terminal nor Prefect's API can encode."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _place(error: BaseException) -> str:
    """Where the error was raised: " (reader.py:12)"; nothing when it was not raised by code."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno})"
