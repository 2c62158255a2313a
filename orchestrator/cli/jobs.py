"""Finding jobs in a storage, for the commands that work on the folder alone (Prefect may be away)."""

from __future__ import annotations

import getpass
import socket
from typing import Any

from orchestrator.core.machine.controls import Standing
from orchestrator.engine.blocks import place_of
from orchestrator.errors import JobNotFoundError
from orchestrator.settings import Settings
from orchestrator.store import JobFolder, absolute_url, job_folder_url, register_scheme
from orchestrator.store.inventory import FolderFacts, FolderKind, look

register_scheme("block", place_of)


def storage_root(storage: str | None) -> str:
    """The storage asked for, else the setting, else the default; absolute.

    Raises:
        ConfigurationError: it is no URL that we can open, or holds user info.
    """
    if found := storage or Settings().storage:
        return absolute_url(found)
    from orchestrator.engine.context import prefect_home  # imports Prefect: a second that the others need not wait

    return absolute_url(str(prefect_home() / "orchestrator" / "jobs"))


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


def all_jobs(storage: str | None) -> list[FolderFacts]:
    """The jobs of a storage, the newest first; what cannot be read is left out."""
    jobs = [facts for facts in look(storage_root(storage)) if facts.kind is FolderKind.JOB]
    return sorted(jobs, key=lambda facts: facts.record.created if facts.record else "", reverse=True)


def who() -> str:
    """Who gives a command, for people who look at the job later."""
    return f"{getpass.getuser()} on {socket.gethostname()}"


def standing_json(now: Standing) -> dict[str, Any]:
    """What holds for a job after all that it was told, as JSON."""
    return {
        "max_in_flight": now.window,
        "kill_switch": str(now.kill_switch) if now.kill_switch is not None else None,
        "paused": now.paused,
        "paused_by": now.paused_by or None,
        "changes": now.changes,
    }
