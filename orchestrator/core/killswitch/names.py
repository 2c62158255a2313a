"""The vocabulary of the language: every name an expression may mention, with its meaning in one line.

The documentation's table and the parser's hints come from here, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

NAMES: Mapping[str, str] = MappingProxyType(
    {
        "total": "items of the job, known before the first batch starts",
        "succeeded": "items that succeeded",
        "failed": "items that failed, after their own retries",
        "unknown": "items in progress in a run that was lost, whose outcome nobody will know",
        "settled": "succeeded + failed + unknown",
        "not_started": "items of batches that are over, that never started",
        "failed_rate": "failed / settled, from 0 to 1; missing until an item has settled",
        "consecutive_failed": "failures since the last success, in the order of news",
        "completed_batches": "batches whose items all have an outcome, at least one of them a success",
        "failed_batches": "batches without a success, or whose run failed before its items",
        "crashed_batches": "batches that the infrastructure lost until all their attempts were used up",
        "crashed_attempts": "attempts that the infrastructure lost, whether tried again or not",
        "settled_batches": "batches that are over, in whatever way",
        "consecutive_failed_batches": "failed or crashed batches since the last completed one, in the order of news",
        "elapsed": "seconds since the job began; since it was resumed, if it was",
        "stalled": "seconds since the job last got on: an item ended, or a child run started or ended",
    }
)

ERRORS = "errors"  # errors["TimeoutError"]
RECENT = "recent_failed_rate"  # recent_failed_rate(500)

FORMS: Mapping[str, str] = MappingProxyType(
    {
        ERRORS: "failed items whose error is of that type, by its class name",
        RECENT: "share of failures among the last n items that ended; missing until there are n",
    }
)

RATES = frozenset({"failed_rate"})  # plain names that are fractions; 5 % is 0.05
KEYWORDS = ("and", "or", "not")
