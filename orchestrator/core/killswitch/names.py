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
        "unknown": "items that were in progress in a run that was lost, and whose outcome nobody knows",
        "settled": "succeeded + failed",
        "not_started": "total - settled - unknown; while the job runs this includes items in progress",
        "failed_rate": "failed / settled, from 0 to 1; missing until an item has settled",
        "consecutive_failed": "failures since the last success, in the order of news",
        "completed_batches": "batches whose items all have an outcome, at least one of them a success",
        "failed_batches": "batches without a success, or whose run failed before its items",
        "crashed_batches": "batches lost by the infrastructure with all their attempts used up",
        "crashed_attempts": "attempts lost by the infrastructure, tried again or not",
        "settled_batches": "batches that have ended, in whatever way",
        "consecutive_failed_batches": "failed or crashed batches since the last completed one, in the order of news",
        "elapsed": "seconds since the job began",
        "stalled": "seconds since the job last got on: an item settled, or a child run started or ended",
    }
)

ERRORS = "errors"  # errors["TimeoutError"]
RECENT = "recent_failed_rate"  # recent_failed_rate(500)

FORMS: Mapping[str, str] = MappingProxyType(
    {
        ERRORS: "failed items whose error has that type, by class name",
        RECENT: "failed / settled among the last n settled items; missing until n have settled",
    }
)

RATES = frozenset({"failed_rate"})  # plain names that are fractions; 5 % is 0.05
KEYWORDS = ("and", "or", "not")
