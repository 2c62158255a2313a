"""`open_job`: the folder of a job that exists, for those who have its id and nothing else."""

from __future__ import annotations

from orchestrator.flows.prepare import storage_root
from orchestrator.settings import Settings
from orchestrator.store import JobFolder, check_job_id, job_folder_url


def open_job(job_id: str, *, storage: str | None = None) -> JobFolder:
    """The folder of a job: its record, its report once it is over, its outcomes.

    Args:
        storage: As given to `orchestrate()`; by default `ORCHESTRATOR_STORAGE`, else in `PREFECT_HOME`.

    Raises:
        JobNotFoundError: there is none of that id.
        ConfigurationError: that is no job's id, or no storage.
    """
    folder = JobFolder(job_folder_url(storage_root(storage, Settings()), check_job_id(job_id)))
    folder.read_job()
    return folder
