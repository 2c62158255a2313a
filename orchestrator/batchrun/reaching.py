"""The first look at the job folder: whether this run reaches it at all, and what to say when it does not.

A path that is not mounted, an address that does not answer, a missing package, a block that Prefect does not know
here: waiting mends none of them. The run ends at once, under a name that the parent knows (`core.model.UNREACHABLE`),
and says what it saw; whether to try again or to end the job is the parent's to decide, which sees whether anybody else
reaches the folder.
"""

from __future__ import annotations

import os
import time

from orchestrator.batchrun.door import Door
from orchestrator.batchrun.ending import Ending
from orchestrator.core.model import UNREACHABLE
from orchestrator.errors import ConfigurationError, EngineError, JobNotFoundError, OrchestratorError
from orchestrator.store import JobFolder, absolute_url, here, import_client, local_path, redact, resolve, shown
from orchestrator.store.bounded import within

REACH_SECONDS = 15.0
"""For storage that does not answer, or says that it cannot now; client libraries wait for minutes."""
MISSING_SECONDS = 3.0
"""For a folder that is not there: on network file systems a new one may be seen a little later."""
_PAUSE_SECONDS = 0.5
_SHOWN_SECONDS = 5.0
_ADDRESS = "Check the address, the network and the credentials where child runs work"
_CHARS = 600


class UnreachableError(OrchestratorError):
    """This run does not reach the job folder; the text is what was seen, without the folder's name."""


def reach(url: str, *, seconds: float = REACH_SECONDS, missing_seconds: float = MISSING_SECONDS) -> JobFolder:
    """The folder of a job, once its `job.json` was read.

    Args:
        seconds: For a folder that cannot be read now; importing its client does not count.
        missing_seconds: For one that is not there.

    Raises:
        UnreachableError: it was not read in time, or never will be.
    """
    began = time.monotonic()
    try:
        place = within(seconds, lambda: resolve(absolute_url(url)).url)
        asked = time.monotonic() - began
        import_client(place)  # a cold machine takes seconds for it, which say nothing of the storage
        began = time.monotonic() - asked
    except (OrchestratorError, TimeoutError):
        pass  # the look says what is wrong

    def look() -> JobFolder:
        folder = JobFolder(url)
        folder.read_job()
        return folder

    said = f"it gave no answer within {seconds:g} s"
    while True:
        left = began + seconds - time.monotonic()
        try:
            return within(max(0.1, left), look)
        except TimeoutError:
            raise UnreachableError(said) from None
        except JobNotFoundError as e:
            if time.monotonic() - began > missing_seconds:
                raise UnreachableError(_what_is_there(url)) from e
        except EngineError as e:  # the storage, or the Prefect that knows the block
            said = str(e)
            if left < _PAUSE_SECONDS or isinstance(e.__cause__, PermissionError):
                raise UnreachableError(said) from e
        except ConfigurationError as e:
            raise UnreachableError(str(e).removeprefix("storage: ")) from e
        time.sleep(_PAUSE_SECONDS)


def unreachable(url: str, error: Exception, door: Door) -> Ending:
    """How a run ends that does not reach its job folder: what was seen from where, and the remedy."""
    what = " ".join(str(error).split())[:_CHARS].rstrip(".")
    try:
        text = within(_SHOWN_SECONDS, lambda: f"{shown(url)} from {here()}: {what}. {_remedy(url, what)}")
    except TimeoutError:  # what a block stands for cannot be told now
        text = f"{redact(url)} from {here()}: {what}. {_ADDRESS}"
    text = door.mask(f"cannot reach the job folder {text}")
    door.logger.error("This run %s", text)
    return Ending("FAILED", UNREACHABLE, text[0].upper() + text[1:])


def _what_is_there(url: str) -> str:
    """What one finds where a folder should be."""
    if (place := _path(url)) is None:
        return "there is no such job in it"
    path = place
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    if path == place:
        return "the folder is there, and no job in it"
    return f"there is no such folder, only {path}"


def _path(url: str) -> str | None:
    try:
        return local_path(url)
    except OrchestratorError:
        return None  # what its block says cannot be told


def _remedy(url: str, what: str) -> str:
    if _path(url) is not None:
        return (
            "Give child runs the same folder under the same path (a volume of their containers, a shared file system "
            "of their machines), or give the job a storage that both sides reach: a URL (s3://bucket/jobs) or a block"
        )
    if "pip install" in what or "there is no block" in what:
        return "It is missing where child runs work, not where the parent run does"
    return _ADDRESS
