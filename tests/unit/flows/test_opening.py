"""`open_job`: a job's folder by its id."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import JobNotFoundError, open_job
from orchestrator.core.model import ItemOutcome
from orchestrator.errors import ConfigurationError
from orchestrator.testing import simulate


def fail_odd(item: int) -> int:
    if item % 2:
        raise ValueError("odd")
    return item


def test_a_job_is_opened_by_its_id_and_read_item_by_item(tmp_path: Path) -> None:
    simulate(fail_odd, range(6), batch_size=2, job_id="nightly", storage=str(tmp_path))
    folder = open_job("nightly", storage=str(tmp_path))
    assert folder.read_job().total == 6
    assert [outcome.index for outcome in folder.outcomes([ItemOutcome.FAILED])] == [1, 3, 5]


def test_the_storage_of_the_settings_is_looked_at_where_none_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate(fail_odd, range(2), job_id="nightly", storage=str(tmp_path))
    monkeypatch.setenv("ORCHESTRATOR_STORAGE", str(tmp_path))
    assert open_job("nightly").read_job().total == 2


def test_a_job_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobNotFoundError, match="nightly"):
        open_job("nightly", storage=str(tmp_path)).read_job()


@pytest.mark.parametrize("job_id", ["", "../elsewhere", "a/b", "x" * 81])
def test_an_id_that_would_lead_elsewhere_is_refused(job_id: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        open_job(job_id, storage=str(tmp_path))
