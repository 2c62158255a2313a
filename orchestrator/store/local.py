"""Job folders on a local (or locally mounted) file system.

Not through fsspec: its exclusive create looks and then writes, and its transaction moves across devices. Here a new
object is written whole to a temporary file beside its place and then renamed (`put`) or linked (`put_new`) there.
All of it survives the death of the process at any instant. Nothing is forced to the platter: after a power cut a
reader finds what the file system kept, and hashes, counts and formats are checked on reading.
"""

from __future__ import annotations

import errno
import functools
import itertools
import operator
import os
import secrets
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from orchestrator.errors import StoreCorruptError, StoreUnavailableError
from orchestrator.store.primitives import Appender, Entry, check_name, check_prefix

T = TypeVar("T")

_TEMPORARY = ".writing-"
_FOLDER_TRIES = 10
_PROCESS = secrets.token_hex(4)  # process numbers repeat among machines that share a file system
_numbers = itertools.count()


class LocalStore:
    """One folder of the local file system; see `Store`. Folders come to be with the first object in them.

    Args:
        name: What it is called instead of its path.
    """

    appends = True

    def __init__(self, path: str, *, name: str | None = None) -> None:
        self.url = name or path
        self._root = path

    def put(self, name: str, data: bytes) -> None:
        path = self._path(name)
        temporary = self._write_beside(path, data)
        try:
            os.replace(temporary, path)
        except OSError as e:
            _discard(temporary)
            _unavailable(e, "write", path)

    def put_new(self, name: str, data: bytes) -> bool:
        path = self._path(name)
        temporary = self._write_beside(path, data)
        try:
            # A link is exclusive like open("xb"), and its reader never sees a file without its content.
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as e:
            if e.errno in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                return self._create(path, data)  # a file system without links
            _unavailable(e, "create", path)
        finally:
            _discard(temporary)
        return True

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes | None:
        path = self._path(name)
        try:
            with open(_opened(path, os.O_RDONLY), "rb") as file:
                if start:
                    file.seek(start)
                return file.read() if length is None else file.read(length)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as e:
            _unavailable(e, "read", path)

    def append(self, name: str, data: bytes) -> None:
        appender = self.appender(name)
        try:
            appender.write(data)
        finally:
            appender.close()

    def appender(self, name: str) -> Appender:
        path = self._path(name)

        def opened() -> int:
            return _opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

        return _FileAppender(self._with_folder(path, opened), path)

    def list(self, prefix: str = "") -> list[Entry]:
        check_prefix(prefix)
        found: list[Entry] = []
        try:
            _walk(os.path.join(self._root, *prefix.split("/")), prefix, found)
        except OSError as e:
            _unavailable(e, "list", self._root)
        return sorted(found, key=lambda entry: entry.name)

    def folders(self) -> Sequence[str]:
        try:
            with os.scandir(self._root) as entries:
                return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as e:
            _unavailable(e, "list", self._root)

    def delete(self, name: str) -> None:
        path = self._path(name)
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as e:
            _unavailable(e, "delete", path)
        folder = os.path.dirname(path)
        while len(folder) > len(self._root):  # object stores have no empty folders: neither have we
            try:
                os.rmdir(folder)
            except OSError:
                return
            folder = os.path.dirname(folder)

    def tidy(self) -> None:
        for folder, _, names in os.walk(self._root, topdown=False):
            for name in names:
                if name.startswith(_TEMPORARY):
                    _discard(os.path.join(folder, name))
            try:
                os.rmdir(folder)
            except OSError:
                pass  # not empty

    def _path(self, name: str) -> str:
        return os.path.join(self._root, *check_name(name).split("/"))

    def _write_beside(self, path: str, data: bytes) -> str:
        folder = os.path.dirname(path)
        temporary = os.path.join(folder, f"{_TEMPORARY}{_PROCESS}-{os.getpid()}-{next(_numbers)}")

        def written() -> str:
            with open(temporary, "xb", buffering=0) as file:
                _write_all(file.fileno(), data)
            return temporary

        return self._with_folder(path, written, temporary)

    def _create(self, path: str, data: bytes) -> bool:
        try:
            with open(path, "xb", buffering=0) as file:
                _write_all(file.fileno(), data)
        except FileExistsError:
            return False
        except OSError as e:
            _unavailable(e, "create", path)
        return True

    def _with_folder(self, path: str, action: Callable[[], T], temporary: str | None = None) -> T:
        """The action's result, after making the folder of `path` when that was all that was missing.

        Args:
            temporary: What the action writes instead, and leaves half-written when it fails.
        """
        for left in reversed(range(_FOLDER_TRIES)):
            try:
                return action()
            except FileNotFoundError as e:  # or somebody removed the empty folder in between
                if not left:
                    _unavailable(e, "write", path)
                try:
                    Path(path).parent.mkdir(parents=True, exist_ok=True)
                except OSError as failure:
                    _unavailable(failure, "make the folder", os.path.dirname(path))
            except OSError as e:
                if temporary is not None:
                    _discard(temporary)
                _unavailable(e, "write", path)
        raise AssertionError("unreachable")


class _FileAppender:
    """Appends through one descriptor: one write per call, about a microsecond each."""

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor, self._path = descriptor, path
        self._torn = False
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        with self._lock:
            # After a write that failed half-way the torn line is ended first, so that it spoils no other.
            whole = b"\n" + data if self._torn else data
            try:
                written = os.write(self._descriptor, whole)
            except OSError as e:
                _unavailable(e, "append to", self._path)
            self._torn = written != len(whole)
            if self._torn:
                full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                _unavailable(full, "append to", self._path)

    def close(self) -> None:
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1


def _walk(folder: str, prefix: str, found: list[Entry]) -> None:
    """Add all files under a folder, named from `prefix` on; what vanishes meanwhile is not there."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue  # being written
                if entry.is_dir(follow_symlinks=False):
                    _walk(entry.path, f"{prefix}{entry.name}/", found)
                else:
                    try:
                        facts = entry.stat()
                        found.append(Entry(prefix + entry.name, facts.st_size, facts.st_mtime))
                    except FileNotFoundError:
                        pass
    except (FileNotFoundError, NotADirectoryError):
        return


def _opened(path: str, flags: int) -> int:
    """A descriptor of a plain file; nothing waits for what is none.

    Whoever can write to the folder can put a pipe there, which nobody ever writes to, or a link that leads out of it.

    Raises:
        StoreCorruptError: it is a folder, a link, a pipe, a socket or a device.
    """
    more = (getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NONBLOCK", "O_NOFOLLOW", "O_NOCTTY", "O_BINARY"))
    try:
        descriptor = os.open(path, functools.reduce(operator.or_, more, flags), 0o666)
    except OSError as e:
        if e.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENODEV):
            raise _no_file(path) from e
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_file(path)
    return descriptor


def _no_file(path: str) -> StoreCorruptError:
    return StoreCorruptError(f"{path} is no plain file: it was not written by a job; remove it")


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _discard(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # a leftover of ours is in nobody's way: listings skip it


def _unavailable(error: OSError, action: str, path: str) -> NoReturn:
    reason = os.strerror(error.errno) if error.errno else str(error)
    raise StoreUnavailableError(f"cannot {action} {path}: {reason}") from error
