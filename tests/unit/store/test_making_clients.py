"""Clients of object stores that talk to somebody when they are made: what fails in passing is not wrong for good."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from orchestrator.errors import OrchestratorError, StorageError, StoreUnavailableError
from orchestrator.store import objects, open_store, places


class Coded(Exception):
    """As gcsfs and azure raise them."""

    def __init__(self, code: int | None = None, status_code: int | None = None) -> None:
        super().__init__("the server said so")
        self.code, self.status_code = code, status_code


class TransportError(Exception):
    """As google.auth has it; subclasses count as well."""


class Refused(TransportError):
    pass


def wrapped(inner: Exception) -> Exception:
    """As adlfs does with whatever happens while it connects."""
    error = ValueError(f"unable to connect to account for {inner}")
    error.__cause__ = inner
    return error


class Flaky(MemoryFileSystem):
    """A client that fails when it is made, as often as there are errors for it."""

    protocol = "flaky"
    fails: ClassVar[list[Exception]] = []

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if self.fails:
            raise self.fails.pop(0)
        super().__init__(*arguments, **options)

    def pipe_file(self, *arguments: Any, **options: Any) -> Any:
        return super().pipe_file(*arguments, **options)


@pytest.fixture(autouse=True)
def flaky(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Flaky, "fails", [])
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    yield
    objects.forget_file_systems()
    _registry.pop("flaky", None)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)),
        ConnectionRefusedError("refused"),
        TimeoutError("no answer"),
        socket.gaierror(-3, "Temporary failure in name resolution"),
        Refused("metadata server"),
        Coded(code=503),
        Coded(status_code=429),
        wrapped(ConnectionResetError("reset")),
        wrapped(Coded(status_code=500)),
    ],
    ids=repr,
)
def test_what_fails_in_passing_may_be_tried_again(error: Exception) -> None:
    Flaky.fails.append(error)
    with pytest.raises(StoreUnavailableError, match="'flaky://bucket/jobs' cannot be opened"):
        open_store("flaky://bucket/jobs")
    open_store("flaky://bucket/jobs")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Must provide either a connection_string or account_name"),
        FileNotFoundError("key.json"),
        PermissionError("key.json"),
        Coded(code=403),
        wrapped(Coded(status_code=404)),
        RuntimeError("All connection methods have failed!"),
    ],
    ids=repr,
)
def test_what_is_wrong_for_good_is_the_requests_fault(error: Exception) -> None:
    Flaky.fails.append(error)
    with pytest.raises(StorageError, match="'flaky://bucket/jobs' cannot be opened"):
        open_store("flaky://bucket/jobs")


@pytest.mark.parametrize("error", [TimeoutError("no answer"), ValueError("no account")], ids=repr)
def test_what_is_opened_through_a_block_names_the_block(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_resolvers", {"block": lambda block: ("flaky://bucket", {})})
    Flaky.fails.append(error)
    with pytest.raises(OrchestratorError, match=r"'block:remote-file-system/jobs': 'flaky://bucket'") as caught:
        open_store("block:remote-file-system/jobs")
    assert isinstance(caught.value, StoreUnavailableError) is isinstance(error, TimeoutError)
