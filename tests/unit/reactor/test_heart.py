"""The parent's sign of life."""

from __future__ import annotations

import itertools

import pytest

from orchestrator.errors import StoreUnavailableError
from orchestrator.reactor.heart import Heart
from orchestrator.store import JobFolder
from tests.support import eventually


def counter(folder: JobFolder) -> int:
    lease = folder.read_lease()
    return lease.counter if lease is not None else 0


def test_it_beats_once_before_it_returns_and_then_by_itself():
    folder = JobFolder("memory://heart-beats")
    heart = Heart(folder, 3, beat_seconds=0.02, on_loss="finish")
    heart.start()
    try:
        lease = folder.read_lease()
        assert lease is not None
        assert (lease.epoch, lease.on_loss) == (3, "finish")
        eventually(lambda: counter(folder) >= 4, 10, "further beats")
    finally:
        heart.stop()


def test_after_the_stop_it_beats_no_more():
    folder = JobFolder("memory://heart-stops")
    heart = Heart(folder, 1, beat_seconds=0.01, on_loss="stop")
    heart.start()
    heart.stop()
    assert not heart._thread.is_alive()


def test_stopping_one_that_never_started_does_no_harm():
    Heart(JobFolder("memory://heart-never"), 1, beat_seconds=0.01, on_loss="stop").stop()


def test_it_survives_a_folder_that_cannot_be_written(tmp_path):
    place = tmp_path / "job"
    folder = JobFolder(str(place))
    heart = Heart(folder, 1, beat_seconds=0.02, on_loss="stop")
    heart.start()
    try:
        before = counter(folder)
        for number in itertools.count():
            place.rename(tmp_path / f"elsewhere-{number}")
            try:
                place.write_text("a file where the folder was")
                break
            except IsADirectoryError:  # a beat in between made the folder anew
                continue
        eventually(lambda: not heart._thread.is_alive() or heart._counter > before + 3, 10, "beats that fail")
        place.unlink()  # the next beat makes the folder
        eventually(lambda: counter(folder) > before + 3, 10, "a beat after the folder came back")
    finally:
        heart.stop()


@pytest.mark.parametrize(
    "error",
    [StoreUnavailableError("away"), OSError("disk full"), RuntimeError("what a client library raises")],
    ids=lambda e: type(e).__name__,
)
def test_it_survives_whatever_writing_raises(monkeypatch, error):
    folder = JobFolder("memory://heart-survives")
    heart = Heart(folder, 1, beat_seconds=0.02, on_loss="stop")
    heart.start()
    write, failures = folder.write_lease, iter(range(3))

    def sometimes(*args: object) -> None:
        if next(failures, None) is not None:
            raise error
        write(*args)  # type: ignore[arg-type]

    try:
        before = counter(folder)
        monkeypatch.setattr(folder, "write_lease", sometimes)
        eventually(lambda: counter(folder) > before + 3, 10, "beats after the failures")
    finally:
        heart.stop()


def test_a_job_whose_first_sign_of_life_cannot_be_written_does_not_begin(monkeypatch):
    folder = JobFolder("memory://heart-first")

    def away(*args: object) -> None:
        raise StoreUnavailableError("away")

    monkeypatch.setattr(folder, "write_lease", away)
    with pytest.raises(StoreUnavailableError):
        Heart(folder, 1, beat_seconds=0.02, on_loss="stop").start()
