"""The links between a job and the one whose items it runs again, as a parent keeps them."""

from __future__ import annotations

from orchestrator.errors import JobConflictError, StorageError
from orchestrator.store import JobFolder
from orchestrator.store.retries import beside, link


def link_new(folder: JobFolder) -> None:
    """Link the job whose items are run again to this new one, which is gone again when another one was faster.

    Raises:
        JobConflictError: the same items were handed to another job at the same moment.
    """
    record = folder.read_job()
    before = link(folder)
    if before and not (record.spec.get("source") or {}).get("again"):
        folder.delete()
        raise JobConflictError(
            f"the items of job {record.retry_of!r} were handed to job {before[0].job_id!r} at the same moment; that "
            "one runs them"
        )


def link_again(folder: JobFolder) -> None:
    """Complete the link that a parent which died at its start did not write."""
    try:
        link(folder)
    except StorageError:
        pass  # for people only: no reason not to go on with the job


def first_of(folder: JobFolder) -> tuple[str, str | None] | None:
    """The job whose items this one runs again, with the address of its page; None for other items."""
    job_id = folder.read_job().retry_of
    if job_id is None:
        return None
    try:
        url = (beside(folder, job_id).read_report() or {}).get("url")
    except StorageError:
        url = None
    return job_id, url if isinstance(url, str) and url.startswith(("http://", "https://")) else None
