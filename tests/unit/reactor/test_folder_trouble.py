"""What is said of a job folder that cannot be written or read."""

from __future__ import annotations

import errno
import logging
import os

from orchestrator.errors import StoreUnavailableError
from orchestrator.reactor.heart import Heart
from orchestrator.reactor.trouble import FolderTrouble
from orchestrator.store import JobFolder
from tests.support import eventually

LOG = logging.getLogger("tests.trouble")


def full() -> StoreUnavailableError:
    error = StoreUnavailableError("cannot write /jobs/mine/lease.json: No space left on device")
    error.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return error


def test_a_full_disk_is_named_in_the_operating_systems_words():
    assert FolderTrouble(LOG, full).look(0) == "the job folder cannot be written: No space left on device"


def test_an_object_store_is_named_in_its_own_words():
    away = StoreUnavailableError("cannot write s3://jobs/mine/lease.json: 503 slow down")
    found = FolderTrouble(LOG, lambda: away).look(0)
    assert found == "the job folder cannot be written: cannot write s3://jobs/mine/lease.json: 503 slow down"


def test_the_log_says_it_once_a_minute_and_when_it_is_over(caplog):
    errors: list[Exception | None] = [full()]
    trouble = FolderTrouble(LOG, lambda: errors[-1])
    with caplog.at_level(logging.INFO):
        for at in range(0, 130, 6):
            trouble.look(at)
        errors.append(None)
        assert trouble.look(130) is None
        assert trouble.look(136) is None
    assert [r.levelname for r in caplog.records] == ["WARNING", "WARNING", "WARNING", "INFO"]
    assert "No space left on device" in caplog.text


def test_a_sign_of_life_that_cannot_be_written_leaves_its_reason_until_it_can(tmp_path):
    place = tmp_path / "job"
    heart = Heart(JobFolder(str(place)), 1, beat_seconds=0.02, on_loss="stop")
    heart.start()
    try:
        assert heart.trouble is None
        place.rename(tmp_path / "elsewhere")
        place.write_text("a file where the folder was")
        eventually(lambda: heart.trouble is not None, 10, "the reason")
        place.unlink()
        (tmp_path / "elsewhere").rename(place)
        eventually(lambda: heart.trouble is None, 10, "its end")
    finally:
        heart.stop()
