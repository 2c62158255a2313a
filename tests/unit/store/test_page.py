"""docs/job-folder.md: each example on it is read by the readers, its code runs, its names are the layout's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.machine.controls import read_control
from orchestrator.core.machine.wire import Header, Recorded
from orchestrator.core.model import Failure, ItemOutcome
from orchestrator.store import (
    EndRecord,
    JobFolder,
    JobRecord,
    Lease,
    OutcomeRecord,
    StageOptions,
    as_source,
    decode_json,
    job_folder_url,
    layout,
    stage,
)
from orchestrator.store.journal import chunk
from orchestrator.store.records import check_format, stop_from_json
from orchestrator.store.retries import outcomes_of

PAGE = (Path(__file__).parents[3] / "docs" / "job-folder.md").read_text()
EXAMPLES = [json.loads(text) for text in re.findall(r"```json\n(.*?)\n```", PAGE, re.DOTALL)]

_READERS: dict[str, Callable[[Any], Any]] = {
    "setup": lambda data: Header.from_json(data).to_json() == data,
    "lines": lambda data: set(data) == set(decode_json(chunk([], header=None).split(b"\n")[-2])),
    "max_in_flight": lambda data: read_control(data)[1] == [],
    "only": lambda data: check_format(data, "retry") is None and outcomes_of(data["only"]),
    "job_id": lambda data: JobRecord.from_json(data, "job.json").to_json() == data,
    "epoch": lambda data: Lease.from_json(data, "lease.json"),
    "counter": lambda data: check_format(data, "alive") is None,
    "mode": lambda data: stop_from_json(data, "stop.json"),
    "i": lambda data: OutcomeRecord.from_json(data, 1, 0).to_json() == data,
    "counts": lambda data: json.loads(json.dumps(EndRecord.from_json(data, "a0.end").to_json())) == data,
    "accepts": lambda data: check_format(data, "header") is None,
    "who": lambda data: check_format(data, "epoch") is None,
    "records": lambda data: check_format(data, "revoked") is None,
    "silent": lambda data: check_format(data, "recalled") is None,
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: next(iter(e))[:10] if isinstance(e, dict) else "line")
def test_each_example_is_read_as_what_it_shows(example: Any) -> None:
    if isinstance(example, list) and isinstance(example[-1], list):
        assert Recorded.of_wire(example).to_wire() == example
        return
    if isinstance(example, list):
        assert len(example) in (2, 7)
        return
    reader = next(read for field, read in _READERS.items() if field in example)
    assert reader(example)


def test_the_page_shows_every_object_of_a_real_job(tmp_path: Path) -> None:
    shown = PAGE.split("```text")[1].split("```")[0]
    for name in (layout.JOB, layout.LEASE, layout.REPORT, layout.stop(1), layout.stop(2), "epoch/1.json"):
        assert name in shown
    assert layout.part("<nonce>".strip("<>"), 0).replace("nonce", "<nonce>") in shown
    assert layout.index("nonce", 0).replace("nonce", "<nonce>") in shown


def test_its_code_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = str(tmp_path)
    folder = JobFolder(job_folder_url(storage, "nightly"))
    staged = stage(as_source(["a", "b"]), folder, "n", StageOptions())
    folder.create_job(JobRecord("nightly", "n", "2025-01-01T00:00:00Z", {}, staged.total, staged.batches))
    folder.close_by_value(0, 2, 0, ItemOutcome.FAILED, Failure(0, "0", "ValueError", "no good"))
    for code in re.findall(r"```python\n(.*?)\n```", PAGE, re.DOTALL):
        exec(code, {"storage": storage})
    assert capsys.readouterr().out == "2\n0 ValueError no good\n1 ValueError no good\n"
