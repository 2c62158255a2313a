"""Finding jobs in a storage, for the commands that work on the folder alone (Prefect may be away)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import ConfigurationError, JobNotFoundError, OrchestratorError
from orchestrator.settings import Settings
from orchestrator.store import JobFolder, job_folder_url, open_store
from orchestrator.store.layout import JOB


def storage_root(storage: str | None) -> str:
    """The storage asked for, else the setting, else the default."""
    if storage or (storage := Settings().storage):
        return storage
    home = os.environ.get("PREFECT_HOME")
    return str((Path(home) if home else Path.home() / ".prefect") / "orchestrator" / "jobs")


def open_job(job_id: str, storage: str | None) -> JobFolder:
    """The folder of a job that exists.

    Raises:
        JobNotFoundError: there is none of that id; the text names the storage that was looked at.
    """
    root = storage_root(storage)
    folder = JobFolder(job_folder_url(root, job_id))
    try:
        folder.read_job()
    except JobNotFoundError:
        raise JobNotFoundError(
            f"there is no job {job_id!r} in {root}; `orchestrator status` lists what is, --storage looks elsewhere",
            field="job_id",
        ) from None
    return folder


def all_jobs(storage: str | None) -> Iterator[JobFolder]:
    """The jobs of a storage, the newest first; what cannot be read is left out."""
    root = storage_root(storage)
    store = open_store(root)
    names = {entry.name.split("/")[0] for entry in store.list() if entry.name.endswith(f"/{JOB}")}
    folders = []
    for name in names:
        try:
            folder = JobFolder(job_folder_url(root, name))
            folders.append((folder.read_job().created, folder))
        except (ConfigurationError, OrchestratorError):
            continue  # not a job of ours, or of a newer version
    for _, folder in sorted(folders, key=lambda pair: pair[0], reverse=True):
        yield folder
