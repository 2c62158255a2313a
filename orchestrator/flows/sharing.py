"""Whether runs of a work pool share the job folder with this machine, as far as that can be told before they start.

| where the job folder is | process pool, no pool | docker pool | any other pool |
|---|---|---|---|
| a path, a `file://` URL | seen | seen if its volumes mount it | seen if its volumes mount it |
| a block that names a path | seen | seen if its volumes mount it | believed |
| a URL, a block that names one | seen | seen | seen |

*Believed*: what a Kubernetes pool (and the like) mounts stands in a manifest that nobody here can read. Whoever puts
the path into a block for both sides says that both have it; a path alone says no more than where this machine has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.engine.gateway import Deployment
from orchestrator.errors import StorageError
from orchestrator.store import absolute_url, is_local, local_path

if TYPE_CHECKING:
    from orchestrator.engine.admin import Pool


def check_seen(
    storage: str, runs_of: Deployment | Pool, who: str, job_variables: Mapping[str, Any] | None = None
) -> None:
    """Refuse a job folder that those runs cannot see. Asks Prefect when the folder is named by a block; blocking.

    Args:
        storage: Where job folders lie, as given or absolute.
        runs_of: What the runs belong to.
        who: The runs, for people: `child runs`, `the parent`.
        job_variables: Of the runs, which go before those of their deployment and pool.

    Raises:
        StorageError: they cannot; says which folder, who, where, and the remedies.
        EngineUnavailableError: the block cannot be read now.
    """
    root = absolute_url(storage)
    folder = local_path(root)
    if isinstance(runs_of, Deployment):
        pool, pool_type = runs_of.pool, runs_of.pool_type  # None for both: a process that serves it
    else:
        pool, pool_type = runs_of.name, runs_of.type
    if folder is None or pool_type in (None, "process"):
        return
    if mounts((job_variables or {}).get("volumes", runs_of.volumes), folder):
        return
    mount = f'mount it there: job variable volumes=["{folder}:{folder}"]'
    if pool_type != "docker":
        if not is_local(root):
            return
        mount = "mount it there and name it by a block: block:local-file-system/NAME"
    place = root if root == folder else f"{root} ({folder})"
    raise StorageError(
        f"{place} is a folder of this machine, which {who} on the {pool_type} pool {pool!r} cannot see; "
        f"give a URL that both sides reach, e.g. s3://bucket/jobs, or {mount}"
    )


def mounts(volumes: object, folder: str) -> bool:
    """Whether one of these volumes shows containers something at that path, and lets them write.

    Args:
        volumes: As Docker writes them: `source:folder inside[:mode]`; anything else mounts nothing.
    """
    for volume in volumes if isinstance(volumes, Sequence) and not isinstance(volumes, str) else ():
        _, inside, mode = [*str(volume).split(":"), "", ""][:3]
        if inside and "ro" not in mode.split(",") and f"{folder}/".startswith(f"{inside.rstrip('/')}/"):
            return True
    return False
