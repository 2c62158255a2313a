"""Where a storage URL really lies, when only somebody above this floor can say.

A path or an fsspec URL says it itself. `block:TYPE/NAME` does not: a block is Prefect's, and this floor knows nothing
of Prefect. Whoever puts the parts together (`flows`, `cli`) registers who reads it. Each process reads it for itself:
so the URL is all that travels between parent and children, and no credential with it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import ConfigurationError, OrchestratorError, StorageError
from orchestrator.store.primitives import absolute_url, is_local, redact, scheme_of, split_block

Resolver = Callable[[str], tuple[str, Mapping[str, Any]]]
"""`type/name` of a block -> the URL it names, and what fsspec's file system there is to be given."""

_resolvers: dict[str, Resolver] = {}


@dataclass(frozen=True, slots=True)
class Place:
    """Where something lies.

    Args:
        url: An absolute path, or an fsspec URL without user info.
        options: For fsspec's file system there; they may hold secrets, and leave this process in no way.
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)


def register_scheme(scheme: str, resolver: Resolver) -> None:
    """From now on URLs of that scheme are resolved so in this process."""
    _resolvers[scheme] = resolver


def resolve(url: str) -> Place:
    """Where an absolute URL lies. Asks Prefect when it names a block.

    Raises:
        StorageError: the block does not exist, or names nothing that can be used so.
        EngineUnavailableError: Prefect cannot be asked.
    """
    if (named := split_block(url)) is None:
        return Place(url)
    block, below = named
    if (resolver := _resolvers.get("block")) is None:
        raise StorageError(f"{url!r} is opened by `orchestrator.open_job`, which knows of Prefect's blocks")
    found, options = resolver(block)
    try:
        base = absolute_url(found)
    except ConfigurationError as e:
        raise StorageError(f"block {block!r}: {str(e).removeprefix('storage: ')}") from e
    if scheme_of(base) in ("memory", "block"):
        raise StorageError(f"block {block!r} names {base}, where no other process finds anything; give it a real place")
    return Place(base.rstrip("/") + below or "/", options)


def local_path(url: str) -> str | None:
    """The folder of this machine's file system that a URL names, itself or through a block; None for all others.

    Raises:
        StorageError, EngineUnavailableError: see `resolve`.
    """
    place = resolve(absolute_url(url)).url
    return place if is_local(place) else None


def shown(url: str) -> str:
    """A URL for people, with what it resolves to where that is something else; asks nobody in vain."""
    try:
        place = redact(resolve(url).url)
    except OrchestratorError:
        return redact(url)
    return redact(url) if place == redact(url) else f"{redact(url)} ({place})"


def here() -> str:
    """Where this process runs, as far as it decides what a path or an address means: container, host, user."""
    marks = any(map(os.path.exists, ("/.dockerenv", "/run/.containerenv")))
    contained = marks or "KUBERNETES_SERVICE_HOST" in os.environ
    user = f" as user {os.getuid()}" if hasattr(os, "getuid") else ""
    return f"{'a container on ' if contained else ''}host {socket.gethostname()}{user}"
