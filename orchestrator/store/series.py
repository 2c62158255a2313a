"""Jobs of one series, named by a pattern of their ids: every night's `ingest-2025-01-01`, ... as `ingest-*`."""

from __future__ import annotations

from fnmatch import fnmatchcase

from orchestrator.errors import ConfigurationError, JobNotFoundError
from orchestrator.store.folder import JobFolder
from orchestrator.store.opening import open_store
from orchestrator.store.primitives import check_job_id, job_folder_url

ANY = "*"


def is_series(text: str) -> bool:
    """It names a series; no job's own id holds a star."""
    return ANY in text


def check_series(pattern: str) -> str:
    """The pattern itself, when job ids can match it.

    Raises:
        ConfigurationError: none could, or all would.
    """
    check_job_id(pattern.replace(ANY, "-"))
    if not pattern.strip(ANY):
        raise ConfigurationError("names every job there is; give the beginning of their ids, as in nightly-*")
    return pattern


def jobs_like(root: str, pattern: str) -> list[JobFolder]:
    """The jobs of a storage that a pattern names, oldest first; one listing, and one small read for each.

    Raises:
        ConfigurationError: it is no pattern of job ids.
        StorageError: the storage cannot be listed, or one of the jobs cannot be read: leaving it out would run again
            what succeeded there.
    """
    check_series(pattern)
    found = []
    for name in open_store(root).folders():
        if not fnmatchcase(name, pattern):
            continue
        folder = JobFolder(job_folder_url(root, name))
        try:
            found.append((folder.read_job().created, name, folder))
        except JobNotFoundError:
            continue  # staged in part, or just now
    return [folder for _, _, folder in sorted(found, key=lambda job: job[:2])]
