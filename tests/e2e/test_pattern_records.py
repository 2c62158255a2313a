"""Records on real parts: a source process over HTTP, SQLite and PostgreSQL, child runs on a real server and worker."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa

from deployments.records.cleaning import in_euro, orders_of
from deployments.records.flows import records_nightly
from deployments.records.tasks import RATES
from deployments.records.warehouse import ORDERS, SALES, TOTALS
from deployments.services.pages import make_pages
from orchestrator import JobFolder
from orchestrator.stack import Stack
from orchestrator.store import OutcomeRecord, job_folder_url
from tests.docs.pages import ROOT
from tests.e2e.conftest import Program, write_items
from tests.integration.job_support import await_end, deploy_parent, start
from tests.postgres import postgres_server
from tests.prefect_stack import POOL
from tests.support import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FLOWS = ("records-ingest/default", "records-transform/default", "records-publish/default",
         "records-nightly/publish")  # fmt: skip
PATIENCE = 240.0  # for what takes a moment when nobody else works on this machine


class Source:
    """The source, a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = [sys.executable, str(ROOT / "deployments/services/pages.py"), "--folder", str(folder), "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=30)

    def fail(self, faults: dict[str, str]) -> None:
        body = json.dumps(faults).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/faults", body, method="PUT"), timeout=30):
            pass

    def requests(self) -> dict[str, int]:
        with urllib.request.urlopen(f"{self.url}/requests", timeout=30) as answer:
            asked: dict[str, int] = json.load(answer)
            return asked

    def expected(self, *pages: str) -> list[tuple[Any, ...]]:
        """The rows of `orders` that these pages make."""
        rows = [row for page in pages for row in orders_of((self.folder / f"{page}.json").read_bytes(), page)]
        return sorted(tuple(row[c.name] for c in ORDERS.columns) for row in rows)  # type: ignore[literal-required]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    made = Source(tmp_path / "pages")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def deployed(session_stack: Stack) -> None:
    """What prefect.yaml says of records, polled by the tests' worker instead of one of `local`; and a parent."""
    with session_stack.activated():
        deploy_parent("records")
    session_stack.create_pool("local")
    session_stack.deploy(ROOT / "prefect.yaml", *FLOWS)
    for name in FLOWS:
        found = session_stack.request("GET", f"/deployments/name/{name}")
        assert not any(schedule["active"] for schedule in found["schedules"])
        session_stack.request("PATCH", f"/deployments/{found['id']}", {"work_pool_name": POOL})


class Warehouse:
    """One database, read by the tests themselves."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = sa.create_engine(url, poolclass=sa.NullPool)

    def rows(self, table: sa.Table) -> list[tuple[Any, ...]]:
        with self._engine.connect() as connection:
            if not sa.inspect(connection).has_table(table.name):
                return []
            return [tuple(row) for row in connection.execute(table.select().order_by(*table.primary_key.columns))]


@pytest.fixture
def sqlite(tmp_path: Path) -> Warehouse:
    return Warehouse(f"sqlite:///{tmp_path / 'warehouse.db'}")


@pytest.fixture
def warehouses(sqlite: Warehouse) -> Iterator[dict[str, Warehouse]]:
    with ExitStack() as stack:
        postgres = stack.enter_context(postgres_server())
        yield {"sqlite": sqlite, "postgresql": Warehouse(postgres.create("records"))}


def test_both_databases_agree_after_failures_after_a_retry_and_after_a_child_was_killed(
    program: Program, deployed: None, source: Source, warehouses: dict[str, Warehouse], session_stack: Stack
) -> None:
    pages = make_pages(source.folder, 8)
    items = write_items(program.folder / "pages.jsonl", [{"page": page} for page in pages])

    # Five of eight pages fail, each for another reason.
    good = {page: (source.folder / f"{page}.json").read_text() for page in pages}
    broken = json.loads(good[pages[5]])
    broken["orders"][3]["amount"] = "-5"
    (source.folder / f"{pages[4]}.json").write_text('{"orders": [')
    (source.folder / f"{pages[5]}.json").write_text(json.dumps(broken))
    source.fail({pages[1]: "500", pages[2]: "hang", pages[3]: "close", pages[6]: "500 2"})
    done = both(program, warehouses, lambda kind, url: [
        "run", "--deployment", "records-ingest/default", "--items", str(items), "--key", "page",
        "--param", f"source={source.url}", "--param", f"warehouse={url}", "--param", "timeout_seconds=1",
        "--job-id", f"failing-{kind}",
    ])  # fmt: skip
    for kind, report in done.items():
        assert (report["items"]["succeeded"], report["items"]["failed"]) == (3, 5), report
        failed = {r.key: r.error_text or "" for r in results(program, f"failing-{kind}")}
        assert failed[pages[1]] == f"page {pages[1]}: HTTP 500 Internal Server Error"
        assert failed[pages[2]] == f"page {pages[2]}: no answer in 1 s"
        assert failed[pages[3]] == f"page {pages[3]}: Server disconnected without sending a response."
        assert failed[pages[4]].startswith(f"page {pages[4]}: is no JSON: Expecting value")
        assert failed[pages[5]].startswith(f"page {pages[5]}: order {pages[5]}-003: ")
        assert "cents_not_negative" in failed[pages[5]]
    agree(warehouses, source.expected(pages[0], pages[6], pages[7]))
    asked = source.requests()
    assert asked[pages[4]] == asked[pages[5]] == 2, "each job asks once for what asking again cannot mend"
    assert asked[pages[1]] == 6, "each job asks three times for what may come later"

    # The source is well again: what is left, and that alone.
    for page, text in good.items():
        (source.folder / f"{page}.json").write_text(text)
    source.fail({})
    done = both(program, warehouses, lambda kind, _: [
        "retry", f"failing-{kind}", "--job-id", f"again-{kind}",
    ])  # fmt: skip
    assert [report["items"]["succeeded"] for report in done.values()] == [5, 5]
    agree(warehouses, source.expected(*pages))

    # All pages and two new ones; while the last one hangs, the child run is killed.
    pages += make_pages(source.folder, 10)[8:]
    write_items(items, [{"page": page} for page in pages])
    source.fail({pages[-1]: "hang"})
    before = source.requests()
    running = {kind: program.start(
        "run", "--deployment", "records-ingest/default", "--items", str(items), "--key", "page",
        "--param", f"source={source.url}", "--param", f"warehouse={warehouse.url}", "--param", "timeout_seconds=500",
        "--job-id", f"killed-{kind}", "--json",
    ) for kind, warehouse in warehouses.items()}  # fmt: skip
    try:
        eventually(lambda: source.requests().get(pages[-1], 0) == 2, PATIENCE, "both child runs wait for the last page")
        eventually(lambda: all(w.rows(ORDERS) == source.expected(*pages[:-1]) for w in warehouses.values()), PATIENCE,
                   "all other pages are loaded")  # fmt: skip
        for kind in warehouses:
            kill(session_stack, f"killed-{kind}")
        source.fail({})
        done = {kind: json.loads(process.communicate(timeout=PATIENCE)[0]) for kind, process in running.items()}
    finally:
        for process in running.values():
            process.kill()
            process.communicate()
    assert [report["items"]["succeeded"] for report in done.values()] == [10, 10]
    agree(warehouses, source.expected(*pages))
    for kind in warehouses:
        states = sorted(run["state_type"] for run in children(session_stack, f"killed-{kind}"))
        assert states == ["COMPLETED", "CRASHED"]
        changed = {r.key: r.result["changed"] for r in results(program, f"killed-{kind}")}
        assert [changed[page] for page in pages[:8]] == [0] * 8, "a second run changes nothing"
    # What the killed runs had done was not asked for again: one more request a page and job at most where it was
    # recorded as it died.
    again = {page: count - before.get(page, 0) for page, count in source.requests().items()}
    assert again[pages[-1]] == 4
    assert all(2 <= again[page] <= 4 for page in pages[:-1])


def test_stages_feed_each_other_from_the_ui_and_the_command_line(
    program: Program, deployed: None, source: Source, sqlite: Warehouse, session_stack: Stack
) -> None:
    pages = make_pages(source.folder, 3)
    items = write_items(program.folder / "pages.jsonl", [{"page": page} for page in pages])
    (source.folder / f"{pages[1]}.json").write_text("[]")
    where = ["--param", f"warehouse={sqlite.url}"]
    done = program("run", "--deployment", "records-ingest/default", "--items", str(items), "--key", "page", *where,
                   "--param", f"source={source.url}", "--job-id", "stage-1", "--fail-if", "failed > 1")  # fmt: skip
    assert done.code == 0, done.err

    # As the form sends it.
    run = start(session_stack, {
        "deployment": "records-transform/default", "items": {"results_of": "stage-1"},
        "parameters": {"warehouse": sqlite.url}, "advanced": {"job_id": "stage-2", "storage": str(program.storage)},
    }, deployment="orchestrate/records")  # fmt: skip
    assert await_end(session_stack, run, PATIENCE)["state_type"] == "COMPLETED"

    # Only what succeeded went on, and it is what one gets by hand.
    sales = [row for page in (pages[0], pages[2])
             for row in in_euro(orders_of((source.folder / f"{page}.json").read_bytes(), page), RATES)]  # fmt: skip
    assert sqlite.rows(SALES) == [tuple(row.values()) for row in sales]
    assert [r.key for r in results(program, "stage-2")] == [pages[0], pages[2]]


def test_a_night_does_only_what_is_new(
    deployed: None, source: Source, sqlite: Warehouse, stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = make_pages(source.folder, 2)
    (source.folder / f"{pages[1]}.json").write_text("[]")
    monkeypatch.setenv("ORCHESTRATOR_STORAGE", str(tmp_path / "jobs"))

    def night(day: int, stage: Any) -> dict[str, Any]:
        state = records_nightly(stage, datetime.date(2025, 2, day), source.url, sqlite.url, return_state=True)
        return state.result(raise_on_failure=False) if state.is_completed() else {"failed": state.message}

    assert "1 of 2 items failed" in night(1, "ingest")["failed"]  # said, and no matter to the next stage
    assert (night(1, "transform")["total"], len(sqlite.rows(SALES))) == (1, 20)

    # The second night: the page that was malformed is well, and there is a new one. Page 1 is left alone.
    pages = make_pages(source.folder, 3)
    assert night(2, "ingest")["succeeded"] == 2
    assert source.requests() == {pages[0]: 1, pages[1]: 2, pages[2]: 1}
    assert night(2, "transform")["succeeded"] == 2

    # The third night, with nothing new; and the stage as its schedule starts it.
    assert night(3, "ingest")["total"] == night(3, "transform")["total"] == 0
    found = stack.request("GET", "/deployments/name/records-nightly/publish")
    environment = {"env": {"ORCHESTRATOR_STORAGE": str(tmp_path / "jobs")}}
    stack.request("PATCH", f"/deployments/{found['id']}", {"job_variables": environment})
    run = start(stack, {"stage": "publish", "warehouse": sqlite.url}, deployment="records-nightly/publish")
    assert await_end(stack, run, PATIENCE)["state_type"] == "COMPLETED"
    assert [(page, count) for page, count, _ in sqlite.rows(TOTALS)] == [(page, 20) for page in pages]
    assert source.requests() == {pages[0]: 1, pages[1]: 2, pages[2]: 1}


# ---------------------------------------------------------------------- what they share


def both(program: Program, warehouses: dict[str, Warehouse], command: Any) -> dict[str, Any]:
    """Run a command for each warehouse, at the same time; their reports."""
    started = {kind: program.start(*command(kind, w.url), "--json") for kind, w in warehouses.items()}
    reports = {}
    try:
        for kind, process in started.items():
            out, err = process.communicate(timeout=PATIENCE)
            assert process.returncode in (0, 1), err
            reports[kind] = json.loads(out)
    finally:
        for process in started.values():
            process.kill()
            process.communicate()
    return reports


def agree(warehouses: dict[str, Warehouse], expected: list[tuple[Any, ...]]) -> None:
    """Each holds exactly these orders."""
    for kind, warehouse in warehouses.items():
        assert warehouse.rows(ORDERS) == expected, kind


def results(program: Program, job: str) -> list[OutcomeRecord]:
    return list(JobFolder(job_folder_url(str(program.storage), job)).outcomes())


def children(stack: Stack, job: str) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = stack.request(
        "POST", "/flow_runs/filter", {"flow_runs": {"tags": {"all_": [f"job:{job}"]}}}
    )
    return runs


def kill(stack: Stack, job: str) -> None:
    """SIGKILL the processes of the job's child runs that run now."""
    ids = {run["id"] for run in children(stack, job) if run["state_type"] == "RUNNING"}
    killed = 0
    for pid in stack.processes():
        try:
            if psutil.Process(pid).environ().get("PREFECT__FLOW_RUN_ID") in ids:
                os.kill(pid, signal.SIGKILL)
                killed += 1
        except (psutil.Error, ProcessLookupError):
            continue
    assert killed, f"no process of {ids}"
