"""Jobs whose storage is a Prefect block: each side reads it for itself, and no credential leaves it."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest
from prefect.blocks.system import Secret
from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from sqlalchemy import create_engine, inspect, text

from orchestrator import ConfigurationError, StorageError, orchestrate_sync
from orchestrator.cli.app import run
from orchestrator.flows.call import plan_sync
from orchestrator.stack import Stack
from tests.integration import job_flows
from tests.integration.job_support import MARKS, Watched, await_end, deploy, deploy_parent, items, start
from tests.s3server import S3Server

pytestmark = [*MARKS, pytest.mark.timeout(480)]

DATABASE_URL = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
KEY, SECRET = "AKIABLOCKJOBS77XQ", "wJalrXUt-block-secret-9f3b"


@pytest.fixture
def block(s3: S3Server, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> str:
    """A block with all that the storage needs; the environment knows nothing of it, here or in child runs."""
    for variable in s3.environment:
        monkeypatch.delenv(variable, raising=False)
    name = f"jobs-{secrets.token_hex(3)}"
    RemoteFileSystem(basepath="s3://jobs/blocks", settings=s3.block_settings(KEY, SECRET)).save(name, _sync=True)
    return f"block:remote-file-system/{name}"


@pytest.fixture
def watched(job: Watched, block: str) -> Watched:
    job.storage = block
    return job


def leaks(job: Watched, stack: Stack) -> dict[str, list[str]]:
    """Where the block's credentials stand: in the folder, the server's database (blocks aside) and all logs."""
    found: dict[str, bytes] = {}
    store = job.folder.store
    for entry in store.list():
        found[entry.name] = store.get(entry.name) or b""
    url = stack.backing.settings.get(DATABASE_URL, f"sqlite:///{stack.home / 'prefect.db'}")
    engine = create_engine(url.replace("+asyncpg", "+psycopg"))
    with engine.connect() as database:
        for table in inspect(database).get_table_names():
            if table != "block_document":
                found[f"table {table}"] = repr(database.execute(text(f'select * from "{table}"')).fetchall()).encode()
    engine.dispose()
    for log in (stack.home / "logs").glob("*.log"):
        found[log.name] = log.read_bytes()
    assert len(found) > 20
    return {name: [s for s in (KEY, SECRET) if s.encode() in data] for name, data in found.items()}


def test_a_job_in_a_block_is_run_reported_retried_and_read_and_its_credentials_are_nowhere(
    work: str, watched: Watched, block: str, stack: Stack, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    what = items(6)
    what[4]["fail"] = "ValueError"
    # From the form of the deployed parent: the block's name is all that it is told.
    parent = deploy_parent("block")
    form = {
        "deployment": work, "items": {"kind": "inline", "items": what}, "batch_size": 3, "kill_switch": "failed > 9",
        "parameters": watched.parameters, "advanced": watched.advanced,
    }  # fmt: skip
    ended = await_end(stack, start(stack, form, deployment=parent), 180)
    assert "1 of 6 items failed" in ended["state"]["message"], ended["state"]
    assert [o.result for o in watched.outcomes()] == [0, 1, 2, 3, None, 5]
    references = [child["parameters"]["batch"]["folder"] for child in watched.children()]
    assert references == [f"{block}/{watched.job}"] * 2

    # The command line, by flag and by environment.
    assert run(["report", watched.job, "--json", "--storage", block]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["storage"], told["items"]["failed"]) == (f"{block}/{watched.job}", 1)
    monkeypatch.setenv("ORCHESTRATOR_STORAGE", block)
    assert run(["status", watched.job, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["storage"] == f"{block}/{watched.job}"
    mended, again = deploy(job_flows.mended, "mended", "block"), f"{watched.job}-again"
    assert run(["retry", watched.job, "--deployment", mended, "--job-id", again, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"]["succeeded"] == 1
    plan = plan_sync(work, f"results:{again}", storage=block, parameters=watched.parameters)
    assert (plan.items, plan.storage) == (1, block)
    run(["cleanup", "--older-than", "0h", "--dry-run", "--json"])
    assert f'"{watched.job}"' in capsys.readouterr().out

    assert {name: found for name, found in leaks(watched, stack).items() if found} == {}


def test_a_job_in_a_local_block_goes_on_where_it_was_left(
    work: str, job: Watched, stack: Stack, tmp_path: Path
) -> None:
    name = f"local-{secrets.token_hex(3)}"
    LocalFileSystem(basepath=str(tmp_path / "jobs")).save(name, _sync=True)
    job.storage = f"block:local-file-system/{name}/team"
    first = orchestrate_sync(work, items(3), batch_size=3, **job.request)
    assert first.items.succeeded == 3
    assert (tmp_path / "jobs" / "team" / job.job / "report.json").exists()
    assert orchestrate_sync(work, items(3), batch_size=3, **job.request) == first, "the same job, resumed"
    # Items from a file in a block.
    (tmp_path / "jobs" / "left.jsonl").write_text("1\n2\n3\n")
    plan = plan_sync(work, f"block:local-file-system/{name}/left.jsonl", storage=job.storage, parameters=job.parameters)
    assert plan.items == 3


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("block:remote-file-system/nosuch-block", "there is no block 'remote-file-system/nosuch-block' at http://127"),
        ("block:no-such-type/jobs", "there is no block 'no-such-type/jobs'"),
        ("block:remote-file-system", "names no block; write block:TYPE/NAME"),
    ],
    ids=["no-block", "no-type", "no-name"],
)
def test_a_wrong_block_is_refused_before_anything_is_created(work: str, job: Watched, storage: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        orchestrate_sync(work, items(2), storage=storage, job_id=job.job, parameters=job.parameters)
    assert job.children() == []


def test_a_block_with_a_similar_name_is_suggested_and_one_that_holds_no_jobs_is_refused(
    work: str, job: Watched, block: str
) -> None:
    with pytest.raises(StorageError, match=f"did you mean {block}"):
        orchestrate_sync(work, items(2), storage=f"{block}x", parameters=job.parameters)
    name = f"s-{secrets.token_hex(3)}"
    Secret(value="hunter2-hunter2").save(name, _sync=True)
    with pytest.raises(StorageError, match="cannot hold jobs") as caught:
        orchestrate_sync(work, items(2), storage=f"block:secret/{name}", parameters=job.parameters)
    assert "hunter2" not in str(caught.value)


def test_storage_that_a_block_cannot_open_is_refused_without_its_credentials(
    work: str, job: Watched, s3: S3Server, stack: Stack
) -> None:
    settings = {**s3.block_settings(KEY, SECRET), "endpoint_url": "http://127.0.0.1:9"}
    name = f"wrong-{secrets.token_hex(3)}"
    RemoteFileSystem(basepath="s3://jobs/blocks", settings=settings).save(name, _sync=True)
    with pytest.raises(Exception, match=r"127\.0\.0\.1:9") as caught:
        orchestrate_sync(work, items(2), storage=f"block:remote-file-system/{name}", parameters=job.parameters)
    assert SECRET not in str(caught.value)
    assert job.children() == []
