"""Opening a store by its URL, and finding out whether it can hold job folders."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor

from orchestrator.errors import StorageError, StoreUnavailableError
from orchestrator.store.local import LocalStore
from orchestrator.store.objects import MemoryStore, ObjectStore, file_system_class
from orchestrator.store.places import resolve
from orchestrator.store.primitives import Store, absolute_url, is_local, redact, scheme_of


def open_store(url: str) -> Store:
    """The store at a path, `file://`, `memory://`, an fsspec URL, or in a block. Creates nothing.

    Raises:
        ConfigurationError: the URL carries user info or names no place.
        StorageError: the kind of URL is unknown, read-only, lacks its package, or cannot create exclusively; or its
            block does not name storage.
        EngineUnavailableError: its block cannot be read now.
        StoreUnavailableError: its client has to reach somebody to be made, and cannot now.
    """
    whole = absolute_url(url)
    place = resolve(whole)
    if is_local(place.url):
        return LocalStore(place.url, name=whole)
    if scheme_of(place.url) == "memory":
        return MemoryStore(place.url)
    try:
        return ObjectStore(place.url, place.options, name=whole)
    except (StorageError, StoreUnavailableError) as e:
        if place.url == whole:
            raise
        raise type(e)(f"{whole!r}: {str(e).removeprefix('storage: ')}") from e


def import_client(url: str) -> None:
    """Import what opening that absolute URL, no block's, needs: seconds on a machine that did not do it before.

    Raises:
        StorageError: the kind of URL is unknown, or lacks its package.
    """
    if not is_local(url):
        file_system_class(url)


def probe(store: Store, *, racers: int = 6, rounds: int = 2) -> None:
    """Nothing, when the store can hold job folders; leaves nothing behind.

    Writes, reads back, creates exclusively one after the other and, on anything but local disk and memory, at the
    same time: a store (or a gateway before it) that ignores the condition lets several win.

    Raises:
        StorageError: it cannot be written or read, or does not create exclusively.
    """
    place = f"probe/{secrets.token_hex(8)}"
    try:
        try:
            store.put(place, b"1")
            if store.get(place) != b"1":
                raise StorageError(f"{redact(store.url)} does not give back what was written to it")
            exclusive = not store.put_new(place, b"2") and store.get(place) == b"1"
        finally:
            store.delete(place)
        for number in range(0 if store.appends else rounds):
            exclusive = exclusive and _has_one_winner(store, f"{place}-{number}", racers)
    except StoreUnavailableError as e:
        raise StorageError(f"{redact(store.url)} cannot serve as storage: {e}") from e
    if not exclusive:
        raise StorageError(
            f"{redact(store.url)} lets two writers create the same object (no conditional writes): jobs there could "
            "run twice; use another storage"
        )


def _has_one_winner(store: Store, name: str, racers: int) -> bool:
    try:
        with ThreadPoolExecutor(racers) as pool:
            return sum(pool.map(lambda number: store.put_new(name, b"%d" % number), range(racers))) == 1
    finally:
        store.delete(name)
