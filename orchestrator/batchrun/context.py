"""What a user's function may learn of the item it is given."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ItemContext:
    """Passed to a second parameter annotated `ItemContext`; what makes work on an item idempotent.

    Args:
        key: The item's label: the value of its key field, else its index as text. May repeat.
        index: Its place in the input, 0-based: its identity within the job.
        job: The job id; empty when the batch flow runs by itself.
        batch: Number of the batch it is in, 0-based.
        attempt: How often this batch was started before: 0 the first time.
    """

    key: str
    index: int
    job: str
    batch: int
    attempt: int
