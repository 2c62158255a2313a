"""The six operations that a job folder needs of its storage, and the URLs it is named by.

`put`, `put_new`, `get`, `append`, `list`, `delete`: each is atomic by itself, nothing spans two of them. Whatever can
do these can hold a job; `put_new` is what makes a claim, a stop or a first writer exclusive.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import unquote, urlsplit

from orchestrator.errors import ConfigurationError, InternalError, StorageError, install_extra

_SEGMENT = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
_NAME = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_BLOCK = re.compile(r"block:([a-z0-9-]+/[a-z0-9-]+)((?:/(?!\.+(?:/|$))[A-Za-z0-9._-]+)*)/*")
_AZURE = {"abfs", "abfss", "az", "wasb", "wasbs"}
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure"}
_JOB_ID = re.compile(r"[A-Za-z0-9._-]{1,80}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One object in a listing: its name relative to the store, its size in bytes.

    Args:
        modified: When it was written last, in epoch seconds of the storage's clock; None where it does not say.
    """

    name: str
    size: int
    modified: float | None = field(default=None, compare=False)


class Appender(Protocol):
    """One object that is being appended to by its single writer. Thread safe."""

    def write(self, data: bytes) -> None:
        """Append in one write that survives the death of this process.

        Raises:
            StoreUnavailableError: nothing or only a part was written.
        """
        ...

    def close(self) -> None: ...


class Store(Protocol):
    """Storage of one folder. Synchronous and thread safe; names are relative, `/`-separated, checked.

    Every operation may raise `StoreUnavailableError` (asking again later may help).
    """

    @property
    def url(self) -> str:
        """Absolute, without user info and trailing slash."""
        ...

    @property
    def appends(self) -> bool:
        """`append` and `appender` are there; without them a writer puts numbered segments."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Create or replace; a reader sees the old or the new object, never a mixture."""
        ...

    def put_new(self, name: str, data: bytes) -> bool:
        """Create unless it exists: of any number of callers exactly one gets True."""
        ...

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes | None:
        """At most `length` bytes from `start`; None when there is no such object.

        Raises:
            StoreCorruptError: what has that name is no object at all (a folder, a pipe, a link).
        """
        ...

    def append(self, name: str, data: bytes) -> None:
        """Append to an object, created when missing. Only where `appends`."""
        ...

    def appender(self, name: str) -> Appender:
        """The same for many writes to one object. Only where `appends`."""
        ...

    def list(self, prefix: str = "") -> list[Entry]:
        """All objects under a folder (`""` or a name ending in `/`), recursively, sorted by name, never cached."""
        ...

    def folders(self) -> Sequence[str]:
        """Names of the folders right below this one, sorted, never cached; links to folders are none."""
        ...

    def delete(self, name: str) -> None:
        """Remove an object; a missing one is fine."""
        ...

    def tidy(self) -> None:
        """Remove what writes that were interrupted left behind; only when nobody writes here any more."""
        ...


def check_name(name: str) -> str:
    """The name itself, when it can only lie inside its store.

    Names are built by `layout` from numbers and nonces alone, so that a bad one is a bug, not an input.

    Raises:
        InternalError: it is absolute, climbs, or holds anything but plain letters, digits and `._-`.
    """
    if len(name) > 500 or not _NAME.fullmatch(name):
        raise InternalError(f"not a name in a job folder: {name[:100]!r}")
    return name


def check_prefix(prefix: str) -> str:
    if prefix:
        check_name(prefix.removesuffix("/"))
    return prefix


def check_job_id(job_id: str) -> str:
    """The id itself, when it can name a job.

    Raises:
        ConfigurationError: it cannot (a path separator, `..`, empty, more than 80 characters).
    """
    if not _JOB_ID.fullmatch(job_id) or set(job_id) == {"."}:
        raise ConfigurationError(
            f"{job_id[:100]!r} cannot name a job: use 1 to 80 letters, digits, '.', '_' and '-'", field="job_id"
        )
    return job_id


def split_block(url: str) -> tuple[str, str] | None:
    """The block that a URL names, `type/name`, and the path below it (""; else from its slash on); None for others.

    Raises:
        ConfigurationError: it begins as one and is none.
    """
    if not url.startswith("block:"):
        return None
    if (match := _BLOCK.fullmatch(url)) is None:
        raise ConfigurationError(
            f"{url[:200]!r} names no block; write block:TYPE/NAME, for example block:remote-file-system/jobs, "
            "and what follows as plain folders",
            field="storage",
        )
    return match[1], match[2]


def scheme_of(url: str) -> str:
    """The URL's protocol in small letters; `file` for a path."""
    if url.startswith("block:"):
        return "block"
    match = _SCHEME.match(url)
    name = match[1].lower() if match else "file"
    return "file" if name == "local" else name


def is_local(url: str) -> bool:
    """Whether it names a folder of this machine's file system."""
    return scheme_of(url) == "file"


def absolute_url(url: str | os.PathLike[str], *, field: str = "storage") -> str:
    """The same place, named so that another process in another directory finds it.

    Args:
        url: A path (relative, `~`), `file://...`, any URL that fsspec knows, or `block:TYPE/NAME`.

    Returns:
        An absolute path for local places, else the URL; without trailing slashes.

    Raises:
        ConfigurationError: user info in the URL, a chained URL, no block, or nothing at all.
    """
    text = os.fspath(url)
    if not text.strip() or "\0" in text:
        raise ConfigurationError("is empty; give a folder or an fsspec URL such as s3://bucket/jobs", field=field)
    try:
        block = split_block(text)
    except ConfigurationError as e:
        raise ConfigurationError(str(e).removeprefix("storage: "), field=field) from None
    if block is not None:
        return f"block:{block[0]}{block[1]}"
    if "::" in text:
        raise ConfigurationError(f"{redact(text)!r} chains URLs; give the plain URL of the folder itself", field=field)
    refuse_user_info(text, field=field)
    if is_local(text):
        match = _SCHEME.match(text)
        path = unquote(text[match.end() :]) if match else text
        return os.path.abspath(os.path.expanduser(path))
    scheme, rest = text.split("://", 1)
    rest = rest.rstrip("/")
    if not rest and scheme.lower() != "memory":
        raise ConfigurationError(f"{text!r} names no place; give for example {scheme}://bucket/jobs", field=field)
    return f"{scheme.lower()}://{rest}"


def refuse_user_info(url: str, *, field: str = "storage") -> None:
    """Nothing, unless the URL carries a user name or password.

    Raises:
        ConfigurationError: it does; the text shows the URL without them.
    """
    if not _SCHEME.match(url):
        return
    if _user_info(url):
        raise ConfigurationError(
            f"{redact(url)!r} was given with a user name or password; credentials belong in the environment or in "
            "fsspec's own configuration, on the parent's and on the child runs' side",
            field=field,
        )


def _user_info(url: str) -> str:
    """User name and password in a URL; "" when there are none. In Azure's URLs `container@account` is none."""
    user, at, _ = url.split("://", 1)[1].split("/", 1)[0].rpartition("@")
    return user + at if ":" in user or scheme_of(url) not in _AZURE else ""


def redact(url: str) -> str:
    """The URL as it may be shown: without user info and without query (where signatures are)."""
    if not _SCHEME.match(url):
        return url
    scheme, rest = url.split("://", 1)
    shown = f"{scheme}://{rest.removeprefix(_user_info(url))}"
    return shown.split("?", 1)[0] if urlsplit(shown).query else shown


def job_folder_url(storage_root: str, job_id: str) -> str:
    """Where a job of that id lies under a storage root (absolute URL)."""
    root = absolute_url(storage_root)
    return f"{root}{'' if root.endswith('/') else '/'}{check_job_id(job_id)}"


def knows_package(scheme: str) -> bool:
    """Whether an extra of this package brings what URLs of that protocol need."""
    return scheme in _EXTRAS


def package_hint(scheme: str) -> str:
    """What to install for a URL of that protocol."""
    if name := _EXTRAS.get(scheme):
        return install_extra(name)
    return "install the package that fsspec needs for it"


def refuse_scheme(url: str, reason: str) -> StorageError:
    return StorageError(f"{redact(url)!r} cannot hold job folders: {reason}")
