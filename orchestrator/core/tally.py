"""The running counts of a job: what kill switches look at and what people watch.

Counts of a batch are level-triggered: the newest replaces what was known of it, so news may repeat, skip or go back (a
child that died before its last outcomes were written) and the totals stay true. Order-dependent numbers
(`consecutive_failed`, `recent_failed_rate`) follow the order of news and count only what grew.
"""

from __future__ import annotations

from collections import Counter, deque

from orchestrator.core.model import BatchOutcome, Counts, Failure

_NOTHING = Counts()


class Tally:
    """Counts of items and batches; implements `killswitch.Readings`.

    Args:
        total: Items of the job.
        windows: The `n` of every `recent_failed_rate(n)` that will be asked for; only so much is remembered.
    """

    __slots__ = (
        "_recent",
        "_recent_items",
        "_window",
        "consecutive_failed",
        "consecutive_failed_batches",
        "crashed_attempts",
        "error_counts",
        "examples",
        "failed",
        "first_failure",
        "last_progress",
        "not_started",
        "now",
        "outcomes",
        "started",
        "succeeded",
        "total",
        "unknown",
    )

    def __init__(self, total: int, *, windows: frozenset[int] = frozenset()) -> None:
        self.total = total
        self.succeeded = self.failed = self.unknown = self.not_started = 0
        self.consecutive_failed = self.consecutive_failed_batches = self.crashed_attempts = 0
        self.outcomes: Counter[BatchOutcome] = Counter()
        self.error_counts: Counter[str] = Counter()
        self.examples: dict[str, Failure] = {}
        self.first_failure: Failure | None = None
        self.now = self.started = self.last_progress = 0.0
        self._window = max(windows, default=0)
        self._recent: deque[tuple[int, int]] = deque()  # (settled, failed) per piece of news
        self._recent_items = 0

    # ------------------------------------------------------------------ what happened

    def update(self, old: Counts | None, new: Counts) -> None:
        """Replace what was known of a batch by what is known now."""
        old = old or _NOTHING
        grown_ok, grown_failed = new.succeeded - old.succeeded, new.failed - old.failed
        self.succeeded += grown_ok
        self.failed += grown_failed
        if old.errors != new.errors:
            self.error_counts.subtract(old.errors)
            self.error_counts.update(new.errors)
        if grown_ok > 0:
            self.consecutive_failed = new.trailing_failures
        elif grown_failed > 0:
            self.consecutive_failed += grown_failed
        if grown_ok > 0 or grown_failed > 0:
            self.last_progress = self.now
            self._remember(max(grown_ok, 0) + max(grown_failed, 0), max(grown_failed, 0))
        if new.first_failure is not None:
            self.first_failure = self.first_failure or new.first_failure
            if len(self.examples) < 50:
                self.examples.setdefault(new.first_failure.type, new.first_failure)

    def settle(self, outcome: BatchOutcome, *, unknown: int, not_started: int) -> None:
        """A batch is over: its items without an outcome are counted too."""
        self.outcomes[outcome] += 1
        self.unknown += unknown
        self.not_started += not_started
        self.last_progress = self.now
        if outcome is BatchOutcome.COMPLETED:
            self.consecutive_failed_batches = 0
        elif outcome in (BatchOutcome.FAILED, BatchOutcome.CRASHED):
            self.consecutive_failed_batches += 1

    def amend(self, before: BatchOutcome, after: BatchOutcome, unknown: int, not_started: int) -> None:
        """What a settled batch came to was learnt late: so many items more (or fewer) are unknown, not started."""
        self.outcomes[before] -= 1
        self.outcomes[after] += 1
        self.unknown += unknown
        self.not_started += not_started

    def remember_at_least(self, windows: frozenset[int]) -> None:
        """Keep enough of the news from now on for these `recent_failed_rate(n)`."""
        self._window = max(self._window, *windows, 0)

    def _remember(self, settled: int, failed: int) -> None:
        if not self._window:
            return
        self._recent.append((settled, failed))
        self._recent_items += settled
        # Keep the shortest suffix of news that still holds a full window.
        while self._recent_items - self._recent[0][0] >= self._window:
            self._recent_items -= self._recent.popleft()[0]

    # ------------------------------------------------------------------ killswitch.Readings

    def number(self, name: str) -> float | None:
        """The value of a name of the kill-switch language; None when it has none yet (a rate of nothing).

        Raises:
            KeyError: no such name.
        """
        if name == "failed_rate":
            return self.failed / self.settled if self.settled else None
        if name == "elapsed":
            return self.now - self.started
        if name == "stalled":
            return self.now - self.last_progress
        return float(_NUMBERS[name](self))

    def errors(self, type_name: str) -> int:
        return max(self.error_counts.get(type_name, 0), 0)

    def recent_failed_rate(self, n: int) -> float | None:
        """Share of failures among the newest `n` settled items; None before there are `n`.

        News counts several items at once: the oldest piece that reaches into the window counts in proportion.
        """
        left, failed = n, 0.0
        for settled, bad in reversed(self._recent):
            taken = min(left, settled)  # in whole items: shares of one would not always add up to it
            failed += bad * taken / settled
            left -= taken
            if left == 0:
                return failed / n
        return None

    # ------------------------------------------------------------------ for people

    @property
    def settled(self) -> int:
        """Items whose outcome is known, or known to stay unknown."""
        return self.succeeded + self.failed + self.unknown

    @property
    def settled_batches(self) -> int:
        return sum(self.outcomes.values())


_NUMBERS = {
    "total": lambda t: t.total,
    "succeeded": lambda t: t.succeeded,
    "failed": lambda t: t.failed,
    "unknown": lambda t: t.unknown,
    "not_started": lambda t: t.not_started,
    "settled": lambda t: t.settled,
    "consecutive_failed": lambda t: t.consecutive_failed,
    "completed_batches": lambda t: t.outcomes[BatchOutcome.COMPLETED],
    "failed_batches": lambda t: t.outcomes[BatchOutcome.FAILED],
    "crashed_batches": lambda t: t.outcomes[BatchOutcome.CRASHED],
    "crashed_attempts": lambda t: t.crashed_attempts,
    "settled_batches": lambda t: t.settled_batches,
    "consecutive_failed_batches": lambda t: t.consecutive_failed_batches,
}
