"""Job folders on object stores and in memory, through fsspec.

fsspec's instances are made for us alone and without listing caches: what a parent and its children tell each other
must be read from the store each time. Credentials come from fsspec's own configuration or the environment.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any, ClassVar, NoReturn

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from fsspec.spec import AbstractFileSystem

from orchestrator.errors import InternalError, StorageError, StoreUnavailableError
from orchestrator.store.primitives import (
    Appender,
    Entry,
    check_name,
    check_prefix,
    knows_package,
    package_hint,
    redact,
    refuse_scheme,
    scheme_of,
)

_READ_ONLY = {"http", "https", "zip", "tar", "data", "github", "reference", "git", "libarchive"}
_EXISTS_CODES = {"PreconditionFailed", "412", "ConditionNotMet", "BlobAlreadyExists", "FileAlreadyExists"}
_CONFLICT_CODES = {"ConditionalRequestConflict", "OperationAborted", "409"}
_PASSING_CODES = {"408", "429", "500", "502", "503", "504"}
_PASSING_NAMES = {
    "ClientConnectionError",  # aiohttp
    "ConnectionError", "Timeout",  # requests, and Python's own
    "ConnectTimeoutError", "EndpointConnectionError", "ReadTimeoutError",  # botocore
    "ServiceRequestError", "ServiceResponseError",  # azure
    "TransportError",  # google.auth
}  # fmt: skip
"""Classes by which client libraries say that nobody answered; a package that is not used is not imported for them."""

S3_PATIENCE: Mapping[str, Any] = {"connect_timeout": 10, "read_timeout": 20, "retries": {"total_max_attempts": 3}}
"""botocore alone waits five times sixty seconds for a server that does not answer; s3fs asks again by itself."""

_filesystems: dict[tuple[object, ...], Any] = {}
_filesystems_lock = threading.Lock()


def file_system_class(url: str) -> Any:
    """fsspec's class for that URL.

    Raises:
        StorageError: the protocol is unknown, or its package is not installed.
    """
    scheme = scheme_of(url)
    try:
        return fsspec.get_filesystem_class(scheme)
    except ImportError as e:
        raise StorageError(f"{redact(url)!r} needs a package that is missing; {package_hint(scheme)}") from e
    except ValueError as e:
        if knows_package(scheme):  # abfss:// is known to fsspec by the installed package alone
            raise StorageError(f"{redact(url)!r} needs a package that is missing; {package_hint(scheme)}") from e
        raise StorageError(
            f"{redact(url)!r}: unknown kind of URL {scheme!r}; use a folder, or s3://, gs://, abfs://"
        ) from e


def file_system(url: str, options: Mapping[str, Any] = {}) -> Any:
    """fsspec's file system for that URL, ours alone, without listing cache; one per process and place.

    Args:
        options: For fsspec's class, as a block gives them; they may hold secrets.

    Raises:
        StorageError: the protocol is unknown, its package is not installed, or it cannot be set up.
        StoreUnavailableError: it had to talk to somebody for that, who cannot be reached now.
    """
    kind = file_system_class(url)
    options = {**kind._get_kwargs_from_urls(url), **options}
    if scheme_of(url) in ("s3", "s3a"):
        asked = options.get("config_kwargs") or fsspec.config.conf.get("s3", {}).get("config_kwargs") or {}
        options["config_kwargs"] = {**deepcopy(S3_PATIENCE), **asked}
    place = (os.getpid(), scheme_of(url), *sorted((str(k), repr(v)) for k, v in options.items()))
    with _filesystems_lock:
        if place in _filesystems:
            return _filesystems[place]
    try:
        # Without the lock: gcsfs and adlfs look for credentials on the network when they are made.
        made = kind(**options | {"use_listings_cache": False, "skip_instance_cache": True})
    except Exception as e:
        # Each client library has errors of its own for what it is not content with.
        text = " ".join(str(e).split())[:300] or type(e).__name__
        said = f"{redact(url)!r} cannot be opened: {text}"
        raise (StoreUnavailableError(said) if _passes(e) else StorageError(said)) from e
    with _filesystems_lock:
        return _filesystems.setdefault(place, made)


def forget_file_systems() -> None:
    """Make new ones from here on, which read credentials and endpoints anew."""
    with _filesystems_lock:
        _filesystems.clear()


class ObjectStore:
    """A prefix of an object store; see `Store`. Without append: writers put numbered segments.

    Args:
        options: For fsspec's file system, besides what the URL and the environment say.
        name: What it is called instead of its URL.
    """

    appends = False

    def __init__(self, url: str, options: Mapping[str, Any] | None = None, *, name: str | None = None) -> None:
        self.url = name or url
        if scheme_of(url) in _READ_ONLY:
            raise refuse_scheme(url, "it is read-only; use a folder, or s3://, gs://, abfs://")
        # fsspec's own stand-in for an exclusive create looks first and writes then: several can win. Only file
        # systems that ask the store itself (s3fs, gcsfs, adlfs) will do; `probe` tries what they really give.
        kind = file_system_class(url)
        if issubclass(kind, AsyncFileSystem):
            imitates = kind._pipe_file is AsyncFileSystem._pipe_file
        else:
            imitates = kind.pipe_file is AbstractFileSystem.pipe_file
        if imitates:
            raise refuse_scheme(url, "it cannot create a file exclusively; use a folder, or s3://, gs://, abfs://")
        self._fs = file_system(url, options or {})
        self._root = str(self._fs._strip_protocol(url)).rstrip("/")

    def put(self, name: str, data: bytes) -> None:
        path = self._path(name)
        try:
            self._fs.pipe_file(path, data)
        except Exception as e:  # noqa: BLE001 - each client library has errors of its own
            self._unavailable(e, "write", name)

    def put_new(self, name: str, data: bytes) -> bool:
        path = self._path(name)
        for _ in range(5):
            try:
                self._fs.pipe_file(path, data, mode="create")
            except Exception as e:  # noqa: BLE001
                if isinstance(e, FileExistsError) or _says(e, _EXISTS_CODES):
                    return False
                if _says(e, _CONFLICT_CODES):
                    continue  # two at the same instant, S3 asks both to come again
                self._unavailable(e, "create", name)
            return True
        raise StoreUnavailableError(f"cannot create {redact(self.url)}/{name}: the store keeps answering 'conflict'")

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes | None:
        path = self._path(name)
        if length == 0:
            return b""
        try:
            if not start and length is None:
                return bytes(self._fs.cat_file(path))
            return bytes(self._fs.cat_file(path, start=start, end=None if length is None else start + length))
        except FileNotFoundError:
            return None
        except Exception as e:  # noqa: BLE001
            if _says(e, {"InvalidRange", "416"}):
                return b""  # an empty object, or a start beyond its end
            self._unavailable(e, "read", name)

    def append(self, name: str, data: bytes) -> None:
        raise InternalError("an object store cannot append")

    def appender(self, name: str) -> Appender:
        raise InternalError("an object store cannot append")

    def list(self, prefix: str = "") -> list[Entry]:
        check_prefix(prefix)
        try:
            found = self._fs.find(f"{self._root}/{prefix}".rstrip("/"), detail=True)
        except FileNotFoundError:
            return []
        except Exception as e:  # noqa: BLE001
            self._unavailable(e, "list", prefix)
        start = len(self._root) + 1
        return sorted(
            (
                Entry(path[start:], int(info.get("size") or 0), _modified(info))
                for path, info in found.items()
                if path.startswith(f"{self._root}/{prefix}") and info.get("type") != "directory"
            ),
            key=lambda entry: entry.name,
        )

    def folders(self) -> Sequence[str]:
        try:
            found = self._fs.ls(self._root, detail=True)
        except FileNotFoundError:
            return []
        except Exception as e:  # noqa: BLE001
            self._unavailable(e, "list", "")
        names = (str(info["name"]).rstrip("/") for info in found if info.get("type") == "directory")
        start = f"{self._root}/"
        return sorted({name.removeprefix(start) for name in names if name.startswith(start)} - {""})

    def delete(self, name: str) -> None:
        path = self._path(name)
        try:
            self._fs.rm_file(path)
        except FileNotFoundError:
            return
        except Exception as e:  # noqa: BLE001
            self._unavailable(e, "delete", name)

    def tidy(self) -> None:
        pass

    def _path(self, name: str) -> str:
        return f"{self._root}/{check_name(name)}"

    def _unavailable(self, error: Exception, action: str, name: str) -> NoReturn:
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise StoreUnavailableError(f"cannot {action} {redact(self.url)}/{name}: {text}") from error


class MemoryStore:
    """Objects in fsspec's in-process memory file system, for tests and trials; see `Store`."""

    appends = True
    _lock = threading.RLock()  # one for all: fsspec's memory is one per process as well
    _folders: ClassVar[dict[str, set[str]]] = {}  # folder -> all paths below it: jobs list often
    _known: ClassVar[set[str]] = set()

    def __init__(self, url: str) -> None:
        self.url = url
        self._root = "/" + url.split("://", 1)[1].strip("/")
        self._objects: dict[str, Any] = MemoryFileSystem.store

    def put(self, name: str, data: bytes) -> None:
        path = self._path(name)
        with self._lock:
            self._objects[path] = MemoryFile(None, path, data)
            self._learn(path)

    def put_new(self, name: str, data: bytes) -> bool:
        with self._lock:
            if self._path(name) in self._objects:
                return False
            self.put(name, data)
            return True

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes | None:
        path = self._path(name)
        with self._lock:
            if path not in self._objects:
                return None
            with self._objects[path].getbuffer() as view:
                return bytes(view[start:] if length is None else view[start : start + length])

    def append(self, name: str, data: bytes) -> None:
        path = self._path(name)
        with self._lock:
            if path not in self._objects:
                self._objects[path] = MemoryFile(None, path)
                self._learn(path)
            file = self._objects[path]
            file.seek(0, os.SEEK_END)
            file.write(data)

    def appender(self, name: str) -> Appender:
        return _MemoryAppender(self, check_name(name))

    def list(self, prefix: str = "") -> list[Entry]:
        whole = f"{self._root.rstrip('/')}/{check_prefix(prefix)}"
        start = len(self._root.rstrip("/")) + 1
        with self._lock:
            if len(self._known) != len(self._objects):  # somebody else writes to fsspec's memory too
                self._folders.clear()
                self._known.clear()
                for path in self._objects:
                    self._learn(path)
            below = self._folders.get(whole.rpartition("/")[0], ())
            found = [
                Entry(path[start:], file.getbuffer().nbytes, file.modified.timestamp())
                for path, file in ((path, self._objects[path]) for path in below if path.startswith(whole))
            ]
        return sorted(found, key=lambda entry: entry.name)

    def folders(self) -> Sequence[str]:
        return sorted({entry.name.split("/")[0] for entry in self.list() if "/" in entry.name})

    def delete(self, name: str) -> None:
        path = self._path(name)
        with self._lock:
            self._objects.pop(path, None)
            self._known.discard(path)
            for folder in _folders_of(path):
                self._folders.get(folder, set()).discard(path)

    def tidy(self) -> None:
        pass

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{check_name(name)}"

    def _learn(self, path: str) -> None:
        if path not in self._known:
            self._known.add(path)
            for folder in _folders_of(path):
                self._folders.setdefault(folder, set()).add(path)


def _modified(info: Mapping[str, Any]) -> float | None:
    """When an object was written last, by whatever name its store calls that; None when it does not say."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "modified", "created"):
        value = info.get(name)
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                continue
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return None


def _folders_of(path: str) -> Iterator[str]:
    """Every folder above a path, the root ("") included."""
    while path:
        path = path.rpartition("/")[0]
        yield path


class _MemoryAppender:
    def __init__(self, store: MemoryStore, name: str) -> None:
        self._store, self._name = store, name

    def write(self, data: bytes) -> None:
        self._store.append(self._name, data)

    def close(self) -> None:
        pass


def _passes(error: BaseException | None) -> bool:
    """Whether a client's error, or one it was raised from, may be another one in a moment."""
    for _ in range(5):
        if error is None:
            return False
        named = _PASSING_NAMES & {kind.__name__ for kind in type(error).__mro__}
        if named or isinstance(error, TimeoutError | socket.gaierror) or _carries(error, _PASSING_CODES):
            return True
        error = error.__cause__
    return False


def _says(error: BaseException | None, codes: set[str]) -> bool:
    """Whether the error, or one it came from, carries one of these codes of an object store."""
    for _ in range(5):
        if error is None:
            return False
        if _carries(error, codes):
            return True
        error = error.__cause__ or error.__context__
    return False


def _carries(error: BaseException, codes: set[str]) -> bool:
    response = getattr(error, "response", None)
    body = response.get("Error", {}) if isinstance(response, dict) else {}
    given = (body.get("Code"), *(getattr(error, name, None) for name in ("code", "error_code", "status_code")))
    return bool({str(code) for code in given} & codes)
