"""What a job left, run again with other code and in other batches on a real server: every item accounted for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator import Report, orchestrate_sync
from orchestrator.cli.app import run
from orchestrator.stack import Stack
from orchestrator.store import JobFolder, job_folder_url
from tests.integration import job_flows
from tests.integration.job_support import MARKS, Watched, await_end, check, deploy, deploy_parent, items, start

pytestmark = [*MARKS, pytest.mark.timeout(480)]


@pytest.fixture
def mended(stack: Stack) -> str:
    return deploy(job_flows.mended, "mended", "default")


def test_what_failed_runs_again_under_a_mended_deployment_and_the_chain_adds_up(
    work: str, mended: str, job: Watched, stack: Stack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what = [
        {**item, "id": f"image-{item['n']}", **({"fail": "ValueError"} if item["n"] in (2, 5, 9) else {})}
        for item in items(10)
    ]
    first = orchestrate_sync(work, what, batch_size=4, key="id", on_failure="return", **job.request)
    check(job, first)
    assert (first.items.succeeded, first.items.failed) == (7, 3)
    later, storage = f"{job.job}-again", ["--storage", job.storage]
    flags = ["--only", "failed", "--deployment", mended, "--batch-size", "2", "--job-id", later]
    assert run(["retry", job.job, *flags, *storage, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["items"]["total"], report["items"]["succeeded"], report["batches"]["total"]) == (3, 3, 2)
    assert (report["deployment"], report["retry_of"]) == (mended, job.job)
    folder = JobFolder(job_folder_url(job.storage, later))
    assert [(o.key, o.result) for o in folder.outcomes()] == [("image-2", 2), ("image-5", 5), ("image-9", 9)]

    for name in (job.job, later):
        assert run(["report", name, "--chain", "--json", *storage]) == 0
        chain = json.loads(capsys.readouterr().out)
        assert chain["first"] == job.job
        assert chain["items"] == {"total": 10, "succeeded": 10, "failed": 0, "unknown": 0, "not_started": 0}

    # The same items again: not by retry, not from a form; as a file of them, with their keys.
    assert run(["retry", job.job, *storage]) == 2
    assert f"were handed to job '{later}' already" in capsys.readouterr().err
    form = {
        "deployment": mended, "items": {"job": job.job, "outcome": ["failed"]}, "parameters": job.parameters,
        "advanced": {"storage": job.storage},
    }  # fmt: skip
    parent = await_end(stack, start(stack, form, deployment=deploy_parent("it-retry")))
    assert (parent["state_type"], parent["state_name"]) == ("FAILED", "Refused")
    assert f"were handed to job '{later}' already" in parent["state"]["message"]
    file = tmp_path / "left.jsonl"
    assert run(["results", job.job, "--dead-letter", str(file), *storage]) == 0
    request = {**job.request, "job_id": f"{job.job}-file"}
    by_file: Report = orchestrate_sync(mended, str(file), select="item", key="key", **request)
    assert by_file.items.succeeded == 3
    folder = JobFolder(by_file.storage)
    assert [(o.key, o.result) for o in folder.outcomes()] == [("image-2", 2), ("image-5", 5), ("image-9", 9)]
