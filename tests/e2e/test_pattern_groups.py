"""Task groups, and flows as they are, deployed as prefect.yaml says: by `orchestrator run` and by the parent."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.stack import Stack
from tests.docs.pages import ROOT
from tests.e2e.conftest import Program, write_items
from tests.integration.job_support import MARKS, await_end, deploy_parent, start
from tests.prefect_stack import POOL
from tests.support import eventually

pytestmark = [*MARKS, pytest.mark.slow, pytest.mark.timeout(600)]

FLOWS = ("task-groups/default", "archive/default", "monthly/default", "transcode/default")
HEAVY = "heavy"
PATIENCE = 240.0


@pytest.fixture(scope="module")
def deployed(session_stack: Stack) -> str:
    """Deploy what prefect.yaml says of them, but for the tests' worker; the parent's deployment."""
    session_stack.create_pool("local")
    session_stack.deploy(ROOT / "prefect.yaml", *FLOWS)
    for name in FLOWS:
        found = session_stack.request("GET", f"/deployments/name/{name}")
        session_stack.request("PATCH", f"/deployments/{found['id']}", {"work_pool_name": POOL})
    with session_stack.activated():
        return deploy_parent("groups")


@pytest.fixture
def heavy(session_stack: Stack, deployed: str) -> Iterator[str]:
    """The same flow as `transcode/default`, deployed once more: on a pool of its own, with a worker of its own."""
    session_stack.create_pool(HEAVY)
    worker = session_stack.start_worker(pool=HEAVY)
    light = session_stack.request("GET", "/deployments/name/transcode/default")
    copied = ("flow_id", "entrypoint", "path", "pull_steps", "parameter_openapi_schema", "enforce_parameter_schema")
    body = {name: light[name] for name in copied} | {"name": HEAVY, "work_pool_name": HEAVY}
    session_stack.request("POST", "/deployments/", body)
    yield f"transcode/{HEAVY}"
    session_stack.stop_worker(worker)


class Slow:
    """A document that is being written: whoever reads it waits until it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pipe: int | None = None
        os.mkfifo(path)

    def is_read(self) -> bool:
        try:
            self._pipe = self._pipe or os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # no reader yet
                raise
        return self._pipe is not None

    def write(self, text: str) -> None:
        assert self._pipe is not None
        os.write(self._pipe, text.encode())
        self.close()

    def close(self) -> None:
        """Whoever reads has read all."""
        os.close(self._pipe or os.open(self.path, os.O_RDWR | os.O_NONBLOCK))
        self._pipe = None


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[list[Slow]]:
    made = [Slow(tmp_path / f"slow-{n}.txt") for n in range(3)]
    yield made
    for document in made:
        document.close()


def outcomes(program: Program, job: str) -> list[dict[str, Any]]:
    done = program("results", job, "--outcome", "all", "--json")
    return [json.loads(line) for line in done.out.splitlines()]


def children(stack: Stack, job: str) -> list[dict[str, Any]]:
    """The job's child runs, by name."""
    body = {"flow_runs": {"tags": {"all_": [f"job:{job}"]}}, "sort": "NAME_ASC"}
    found: list[dict[str, Any]] = stack.request("POST", "/flow_runs/filter", body)
    return [run for run in found if run["name"] != job and "orchestrate" not in run["name"]]


def tasks_of(stack: Stack, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    body = {"flow_runs": {"id": {"any_": [run["id"] for run in runs]}}}
    found: list[dict[str, Any]] = stack.request("POST", "/task_runs/filter", body)
    return found


def words(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_groups_run_side_by_side_and_each_outcome_is_written_as_its_group_ends(
    program: Program, deployed: str, session_stack: Stack, tmp_path: Path, slow: list[Slow]
) -> None:
    ready = [words(tmp_path / f"{n}.txt", "word " * n) for n in range(1, 5)]
    items = [str(slow[0].path), *ready, str(tmp_path / "missing.txt"), *(str(s.path) for s in slow[1:])]
    file = write_items(tmp_path / "documents.jsonl", items)
    with program.start(
        "run", "--deployment", "task-groups/default", "--items", str(file), "--job-id", "groups",
        "--tag", "reading", "--json",
    ) as process:  # fmt: skip
        try:
            eventually(lambda: all(s.is_read() for s in slow), PATIENCE, "three groups in progress at once")
            soon = ["pending", *["succeeded"] * 4, "failed", "pending", "pending"]
            eventually(lambda: [o["outcome"] for o in outcomes(program, "groups")] == soon, PATIENCE, "the five others")
            (child,) = children(session_stack, "groups")
            assert child["state_type"] == "RUNNING"
            for n, document in enumerate(slow):
                document.write("late " * n)
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()

    assert process.returncode == 1, err
    assert json.loads(out)["items"] == {"total": 8, "succeeded": 7, "failed": 1, "unknown": 0, "not_started": 0}
    found = outcomes(program, "groups")
    assert [o["result"]["words"] for o in found if o["outcome"] == "succeeded"] == [0, 1, 2, 3, 4, 1, 2]
    assert found[3]["result"]["line"].startswith("3.txt: 3 words, 2")
    assert found[5]["error"]["type"] == "FileNotFoundError"
    assert "missing.txt" in found[5]["error"]["text"]

    # Three task runs per document; the third depends on the first two, and all have the job's tag.
    def recorded() -> dict[str, Any] | None:  # Prefect writes task runs down behind their events
        found = {run["name"]: run for run in tasks_of(session_stack, [child])}
        states = Counter(run["state_name"] for run in found.values())
        return found if states == {"Completed": 21, "Failed": 2, "NotReady": 1} else None

    runs = eventually(recorded, 60, "24 task runs") or {}
    upstream = runs[f"describe {ready[0]}"]["task_inputs"]
    assert [upstream[name][0]["id"] for name in ("words", "day")] == [
        runs[f"{step} {ready[0]}"]["id"] for step in ("count", "date")
    ]
    assert all("reading" in run["tags"] for run in runs.values())


def test_groups_are_started_by_the_parents_deployment_as_from_the_ui(
    deployed: str, session_stack: Stack, tmp_path: Path, program: Program
) -> None:
    paths = [words(tmp_path / f"{n}.txt", "word " * n) for n in range(3)]
    run = start(session_stack, {
        "deployment": "task-groups/default", "items": {"items": paths}, "batch_size": 2,
        "advanced": {"job_id": "groups-ui", "storage": str(program.storage)},
    }, deployment=deployed)  # fmt: skip
    assert await_end(session_stack, run, PATIENCE)["state_name"] == "Completed"
    assert [o["result"]["words"] for o in outcomes(program, "groups-ui")] == [0, 1, 2]


def test_flows_that_take_a_list_or_parameters_are_fanned_out_over_as_they_are(
    program: Program, deployed: str, session_stack: Stack
) -> None:
    months = [{"region": region, "month": month} for region in ("north", "south") for month in (1,)]
    file = write_items(program.folder / "months.jsonl", months)
    running = {
        "archived": program.start(
            "run", "--deployment", "archive/default", "--items", "range:0:5", "--pass-items-as", "list:ids",
            "--batch-size", "3", "--param", "folder=old", "--job-id", "archived", "--json",
        ),
        "january": program.start(
            "run", "--deployment", "monthly/default", "--items", str(file), "--pass-items-as", "parameters",
            "--job-id", "january", "--json",
        ),
    }  # fmt: skip
    done = {name: process.communicate(timeout=PATIENCE) for name, process in running.items()}
    for name, (out, err) in done.items():
        assert running[name].returncode == 0, err
        assert json.loads(out)["batches"]["completed"] == 2
    given = {name: [run["parameters"] for run in children(session_stack, name)] for name in running}
    assert given["archived"] == [{"ids": [0, 1, 2], "folder": "old"}, {"ids": [3, 4], "folder": "old"}]
    assert given["january"] == months
    # They are no batch flows: asked to read items by reference they are refused, and nothing is created.
    refused = program("run", "--deployment", "archive/default", "--items", "range:0:5", "--job-id", "refused")
    assert refused.code == 2
    assert "pass_items_as=list:NAME" in refused.err
    assert children(session_stack, "refused") == []


def test_heavy_items_go_to_another_pool_and_one_bad_item_fails_alone(
    program: Program, deployed: str, heavy: str, session_stack: Stack
) -> None:
    sizes = {"a.mp4": "heavy", "b.mp4": "light", "c.txt": "light"}
    videos = [{"video": video, "size": size} for video, size in sizes.items()]
    file = write_items(program.folder / "videos.jsonl", videos)
    run = start(session_stack, {
        "deployment": {"heavy": heavy, "*": "transcode/default"}, "items": {"path": str(file)},
        "parameters": {"width": 320},
        "advanced": {
            "job_id": "transcoded", "storage": str(program.storage), "group_by": "size", "select": "video",
            "key": "video", "pass_items_as": "one:video",
        },
    }, deployment=deployed)  # fmt: skip
    assert await_end(session_stack, run, PATIENCE)["state"]["message"].startswith("1 of 3 items failed")
    found = outcomes(program, "transcoded")
    assert [(o["key"], o["outcome"]) for o in found] == [
        ("a.mp4", "succeeded"), ("b.mp4", "succeeded"), ("c.txt", "failed"),
    ]  # fmt: skip
    runs = children(session_stack, "transcoded")
    assert [(r["parameters"]["video"], r["work_pool_name"]) for r in runs] == [
        ("a.mp4", HEAVY), ("b.mp4", POOL), ("c.txt", POOL),
    ]  # fmt: skip
    assert {r["parameters"]["width"] for r in runs} == {320}
