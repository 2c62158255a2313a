"""Following the links between jobs that ran again what earlier ones left, and adding up what became of the items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.core.chain import Labelled, Link, in_the_end, item_by_item, total_of
from orchestrator.core.report import ItemCounts, Report
from orchestrator.errors import ConfigurationError, JobNotFoundError
from orchestrator.store.folder import JobFolder
from orchestrator.store.retries import beside, link, living_retries, retried_outcomes

DEEPEST = 200  # retries of retries; also what a folder that was tampered with can make us follow


@dataclass(frozen=True, slots=True)
class Chain:
    """A job, and all that ran again what it left.

    Args:
        first: The job that all others go back to, with those.
        items: What became of its items in the end; the four add up to its total.
        running: Ids of jobs that are not over; what they took counts as it ended before them.
        gone: Id of an even earlier job whose folder is not there any more; None when there is none.
    """

    first: Link
    items: ItemCounts
    running: tuple[str, ...]
    gone: str | None


def follow(folder: JobFolder) -> Chain:
    """The whole chain that a job belongs to; links that a parent died before writing are completed.

    Raises:
        ConfigurationError: its first job is not over, or it goes on for ever.
    """
    first, gone = _first(folder)
    tree = _tree(first, 0)
    if tree.counts is None:
        raise ConfigurationError(f"job {tree.job_id!r} is not over; `orchestrator status {tree.job_id}` says how it is")
    running = tuple(job.job_id for job in tree.walk() if job.counts is None)
    items = in_the_end(tree)
    if items is None:
        items = total_of(Counter(outcome for _, outcome in _outcomes(first, tree)))
    return Chain(tree, items, running, gone)


def _first(folder: JobFolder) -> tuple[JobFolder, str | None]:
    for _ in range(DEEPEST):
        link(folder)
        before = folder.read_job().retry_of
        if before is None:
            return folder, None
        earlier = beside(folder, before)
        try:
            nonce = earlier.read_job().nonce
        except JobNotFoundError:
            return folder, before
        if folder.read_job().spec.get("retry_of_nonce") not in (None, nonce):
            return folder, before  # that id means another job by now
        folder = earlier
    raise _too_deep(folder)


def _tree(folder: JobFolder, depth: int) -> Link:
    if depth > DEEPEST:
        raise _too_deep(folder)
    record = folder.read_job()
    data = folder.read_report()
    later = tuple(_tree(beside(folder, retry.job_id), depth + 1) for retry in living_retries(folder))
    counts = Report.from_json(data).items if data is not None else None
    only = retried_outcomes(record) if depth else frozenset()
    return Link(record.job_id, counts, record.total, only, later, record.retry_of if depth else None)


def _outcomes(folder: JobFolder, tree: Link) -> Iterator[Labelled]:
    """How each item of a job ended in the end; reads all folders side by side, in constant memory."""
    own = ((record.key, record.outcome) for record in folder.outcomes())
    later = [(job.only, _outcomes(beside(folder, job.job_id), job)) for job in tree.later if job.counts is not None]
    return item_by_item(own, later)


def _too_deep(folder: JobFolder) -> ConfigurationError:
    return ConfigurationError(f"more than {DEEPEST} jobs follow one another from {folder.read_job().job_id!r}")
