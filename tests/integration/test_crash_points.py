"""A parent that is killed at any of its steps, resumed on a real server: nothing is lost, nothing is done twice.

Each case is one job: its parents die one after another at the boundaries it names, then somebody resumes it (the
command line, or the same call from Python), and a checker reads folder, server and the items' own account. All cases
run at once on the shared stack, a few at a time; each test waits for its own.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import secrets
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Report, orchestrate_sync
from orchestrator.core.model import StopCause, StopMode, StopRecord
from orchestrator.errors import JobConflictError, JobNotFoundError
from orchestrator.reactor.boundaries import Boundary
from orchestrator.stack import Stack
from tests.contract.proxy import Fault, proxied
from tests.integration.crash_parent import Plan
from tests.integration.job_support import MARKS, Watched, check, check_runs, deploy_work, items
from tests.support import eventually

B = Boundary
pytestmark = MARKS
AT_ONCE = 3  # cases that run at the same time
PARENT_SECONDS = 180.0  # a parent that is not dead by then never came to its boundary
QUICK = {"ORCHESTRATOR_FENCE_SECONDS": "1", "ORCHESTRATOR_ITEM_GRACE_SECONDS": "2", "ORCHESTRATOR_POLL_SECONDS": "0.5"}
ONE_FAILS = [{"n": 0}, {"n": 1, "fail": "ValueError"}, {"n": 2}, {"n": 3}]


@dataclass(frozen=True)
class Case:
    """One job and the deaths of its parents.

    Args:
        deaths: Where, and at which pass; the last one is what the case is named after.
        request: Further parameters of `orchestrate()`. Of its texts and its items', `{work}`, `{idle}` and `{home}`
            are replaced: the batch deployment, the same on a pool that no worker polls, the case's folder.
        during: Called while the first parent lives.
        after: Called between the last death and the resumption.
        lost: Whether Prefect's answers to creations get lost as long as parents die.
        environment: Of the parents that die.
        ends: (verdict, succeeded, failed, unknown, not started) of the report.
        keys: (batch, attempt) of each child run there may be, in order.
        twice: Items that were in progress when their run died.
        resumes: False: the job is over, and whoever resumes it is told how.
    """

    deaths: tuple[tuple[Boundary, int], ...]
    items: list[dict[str, Any]] = field(default_factory=lambda: ONE_FAILS)
    request: dict[str, Any] = field(default_factory=dict)
    during: Callable[[Watched], None] | None = None
    after: Callable[[Watched], None] | None = None
    lost: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    ends: tuple[str, int, int, int, int] = ("completed", 3, 1, 0, 0)
    keys: tuple[tuple[int, int], ...] = ((0, 0), (1, 0))
    twice: frozenset[int] = frozenset()
    resumes: bool = True


# ---------------------------------------------------------------------- jobs


def small(*deaths: tuple[Boundary, int]) -> Case:
    """One batch, one child run."""
    return Case(deaths, request={"batch_size": 4}, keys=((0, 0),))


def plain(*deaths: tuple[Boundary, int]) -> Case:
    """Two batches at once, one item fails."""
    return Case(deaths, request={"batch_size": 2, "max_in_flight": 2})


def losing(*deaths: tuple[Boundary, int]) -> Case:
    """The first child run dies of its second item."""
    what = [{"n": 0}, {"n": 1, "die_once": "{home}/died"}, {"n": 2}]
    ends, keys = ("completed", 3, 0, 0, 0), ((0, 0), (0, 1))
    # Which items are in progress when a run dies depends on its threads: one at a time here.
    return Case(deaths, what, {"batch_size": 3}, ends=ends, keys=keys, twice=frozenset({0, 1, 2}))


def tripping(*deaths: tuple[Boundary, int], **more: Any) -> Case:
    """The first item trips the kill switch; the second batch's run waits for a worker; the third is not submitted."""
    what = [{"n": 0, "g": "a", "fail": "ValueError"}, {"n": 1, "g": "b"}, {"n": 2, "g": "c"}]
    request = {
        "deployment": {"a": "{work}", "*": "{idle}"}, "group_by": "g", "batch_size": 1, "max_in_flight": 2,
        "kill_switch": "failed >= 1",
    }  # fmt: skip
    return Case(deaths, what, request, ends=("tripped", 0, 1, 0, 2), **more)


def draining(*deaths: tuple[Boundary, int]) -> Case:
    """As `tripping`, and the second batch's run is at work and may finish."""
    what = [{"n": 0, "fail": "ValueError"}, {"n": 1, "gate": "{home}/gate"}, {"n": 2}]
    request = {"batch_size": 1, "max_in_flight": 2, "kill_switch": "failed >= 1", "on_trip": "drain"}

    def open_gate(watched: Watched) -> None:
        (watched.home / "gate").touch()

    return Case(deaths, what, request, after=open_gate, ends=("tripped", 1, 1, 0, 1))


def sparing(*deaths: tuple[Boundary, int]) -> Case:
    """Stopped by hand while the parent does not know yet that its child runs."""

    def stop(watched: Watched) -> None:
        watched.wait_until_started(1, PARENT_SECONDS)
        watched.folder.request_stop(BY_HAND)

    return Case(
        deaths, [{"n": 0, "gate": "{home}/gate"}, {"n": 1}], {"batch_size": 1, "max_in_flight": 1}, during=stop,
        environment={"ORCHESTRATOR_POLL_SECONDS": "60"}, ends=("cancelled", 0, 0, 1, 1), keys=((0, 0),),
    )  # fmt: skip


def resolving(*deaths: tuple[Boundary, int]) -> Case:
    """Stopped by hand while nobody knows whether the child run was created; it was, and waits for a worker."""

    def stop(watched: Watched) -> None:
        eventually(watched.children, PARENT_SECONDS, "the child run")
        watched.folder.request_stop(BY_HAND)

    return Case(
        deaths, items(2), {"deployment": "{idle}", "batch_size": 1, "max_in_flight": 1}, during=stop, lost=True,
        ends=("cancelled", 0, 0, 0, 2), keys=((0, 0),),
    )  # fmt: skip


BY_HAND = StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "by hand", "test")

_FIRST = [
    small((at, 1))
    for at in (
        B.STAGING_BEGUN, B.ITEMS_STAGED, B.JOB_WRITTEN, B.EPOCH_CLAIMED, B.LEASE_BEGUN, B.GATEWAY_OPEN,
        B.NOTICES_READ, B.PAGE_BEGUN, B.STARTED_EMITTED, B.SUBMIT_READY, B.END_READ, B.ATTEMPT_CLOSED,
        B.FINISH_DECIDED, B.REPORT_WRITTEN, B.PAGE_PUBLISHED, B.FINISHED_EMITTED, B.LEASE_ENDED,
    )
]  # fmt: skip
_AT_WORK = [
    plain((B.SUBMIT_READY, 2)),
    plain((B.SUBMIT_ANSWERED, 1)),
    plain((B.SUBMIT_PLAYED, 2)),
    plain((B.CHILDREN_READ, 3)),
    plain((B.BATCH_SETTLED, 1)),
]
_LOST = [
    losing((B.ATTEMPT_CLOSED, 1)),
    losing((B.ATTEMPT_LOST, 1)),
    losing((B.SUBMIT_ANSWERED, 2)),
    losing((B.ATTEMPT_CLOSED, 1), (B.RESTORE_READ, 1)),
    Case(((B.SUBMIT_LOST, 1),), request={"batch_size": 4}, lost=True, keys=((0, 0),)),
]
_RESTORED = [
    plain((B.SUBMIT_PLAYED, 2), (at, 1)) for at in (B.RESTORE_LISTED, B.RESTORE_ASKED, B.RESTORE_READ, B.RESTORE_PLAYED)
]
_STOPPED = [
    tripping((B.STOP_WRITTEN, 1)),
    tripping((B.CANCEL_READY, 1)),
    tripping((B.CANCEL_SENT, 1)),
    tripping((B.REPORT_WRITTEN, 1), resumes=False),
    draining((B.DRAIN_WRITTEN, 1)),
    sparing((B.SPARED, 1)),
    resolving((B.RESOLVE_READY, 1)),
    resolving((B.RESOLVE_ANSWERED, 1)),
]


def _named(cases: list[Case]) -> dict[str, Case]:
    names: dict[str, Case] = {}
    for case in cases:
        name = "-then-".join(f"{at.name.lower()}{f'-{n}' if n > 1 else ''}" for at, n in case.deaths)
        while name in names:
            name += "-again"
        names[name] = case
    return names


CASES = _named([*_LOST, *_STOPPED, *_AT_WORK, *_RESTORED, *_FIRST])  # what takes longest first

# ---------------------------------------------------------------------- one case


@dataclass(frozen=True)
class Here:
    """What all cases share."""

    stack: Stack
    work: str
    idle: str

    def fill(self, value: Any, home: Path) -> Any:
        """The value with its placeholders replaced."""
        match value:
            case str():
                return value.replace("{work}", self.work).replace("{idle}", self.idle).replace("{home}", str(home))
            case list():
                return [self.fill(v, home) for v in value]
            case dict():
                return {k: self.fill(v, home) for k, v in value.items()}
        return value


def run_case(here: Here, name: str, case: Case, home: Path, by_command: bool) -> None:
    """Let the parents die, resume the job, check it."""
    home.mkdir()
    watched = Watched(here.stack, home, f"crash-{name}-{secrets.token_hex(2)}"[-80:])
    request = {
        "deployment": "{work}", "max_in_flight": 1, "kill_switch": None, "fail_if": None, **case.request,
        "items": case.items,
    }  # fmt: skip
    request = here.fill(request, home) | watched.request
    for number, (at, nth) in enumerate(case.deaths):
        die(here, case, watched, None if number else request, at, nth)
    if case.after is not None:
        case.after(watched)
    at = case.deaths[-1][0]
    if at in (B.STAGING_BEGUN, B.ITEMS_STAGED):
        with pytest.raises(JobNotFoundError):  # nothing to resume: the same call begins anew
            watched.folder.read_job()
        by_command = False
    report = by_the_command_line(here, watched, case) if by_command else by_the_same_call(watched, request, case)
    n = report.items
    assert (report.verdict.value, n.succeeded, n.failed, n.unknown, n.not_started) == case.ends
    check(watched, report, max_in_flight=request["max_in_flight"])
    check_runs(watched, case.keys, case.twice)


def die(here: Here, case: Case, watched: Watched, request: dict[str, Any] | None, at: Boundary, nth: int) -> None:
    """Start a parent, and see it die where it should."""
    notes = watched.home / f"passed-{secrets.token_hex(2)}.txt"
    plan = Plan(watched.job, watched.storage, at.name, nth, str(notes), request, 0.5 if case.lost else 20.0)
    with ExitStack() as stack:
        environment = here.stack.environment | QUICK | case.environment
        if case.lost:
            environment["PREFECT_API_URL"] = stack.enter_context(losing_answers(here.stack))
        log = stack.enter_context((watched.home / "parent.log").open("ab"))
        command = [sys.executable, "-m", "tests.integration.crash_parent", plan.to_json()]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            if case.during is not None:
                case.during(watched)
            code = process.wait(PARENT_SECONDS)
        except (AssertionError, subprocess.TimeoutExpired) as e:
            e.add_note(f"{said(watched)}\npassed: {passed(notes)}")
            raise
        finally:
            process.kill()
            process.wait()
    assert code == -signal.SIGKILL, f"it ended with {code}, having passed {passed(notes)}:\n{said(watched)}"
    assert (passed(notes)[-1], passed(notes).count(at.name)) == (at.name, nth), said(watched)


def said(watched: Watched) -> str:
    """What the parents that died printed, its end."""
    return (watched.home / "parent.log").read_text()[-3000:]


def passed(notes: Path) -> list[str]:
    return notes.read_text().split() if notes.exists() else []


@contextmanager
def losing_answers(stack: Stack) -> Iterator[str]:
    """An API URL behind which creations are carried out and never answered."""
    url: Future[str] = Future()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        async with proxied(stack.api_url, only="create_flow_run") as proxy:
            proxy.always = Fault.LOST_ANSWER
            url.set_result(proxy.url)
            await over.wait()
        pending = asyncio.all_tasks() - {asyncio.current_task()}
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    def run() -> None:
        loop.run_until_complete(serve())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield url.result(30)
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(30)


def by_the_same_call(watched: Watched, request: dict[str, Any], case: Case) -> Report:
    if not case.resumes:
        with pytest.raises(JobConflictError, match="is over"):
            orchestrate_sync(**request)
        return Report.from_json(watched.folder.read_report() or {})
    return orchestrate_sync(**request, on_failure="return")


def by_the_command_line(here: Here, watched: Watched, case: Case) -> Report:
    command = [sys.executable, "-m", "orchestrator", "resume", watched.job, "--storage", watched.storage, "--json"]
    done = subprocess.run(
        command, env=here.stack.environment | QUICK, capture_output=True, text=True, timeout=PARENT_SECONDS, check=False
    )
    if not case.resumes:
        assert done.returncode == 2, done.stderr
        assert "is over" in done.stderr
        return Report.from_json(watched.folder.read_report() or {})
    assert done.returncode in (0, 1, 4), done.stderr
    report = Report.from_json(json.loads(done.stdout))
    assert done.returncode == report.exit_code
    return report


# ---------------------------------------------------------------------- all of them


@pytest.fixture(scope="module")
def ended(
    session_stack: Stack, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[str, Future[None]]]:
    """The cases that were asked for, a few at a time, each in a folder of its own."""
    home = tmp_path_factory.mktemp("crash-points")
    wanted = {item.callspec.params["name"] for item in request.session.items if "ended" in item.fixturenames}
    session_stack.create_pool("crash-idle")
    with session_stack.activated(), pytest.MonkeyPatch.context() as patch:
        for variable, value in QUICK.items():
            patch.setenv(variable, value)
        here = Here(session_stack, deploy_work(), deploy_work("idle", pool="crash-idle"))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            futures = {
                name: pool.submit(
                    contextvars.copy_context().run, run_case, here, name, case, home / str(number), bool(number % 2)
                )
                for number, (name, case) in enumerate(CASES.items())
                if name in wanted
            }
            yield futures
            for future in futures.values():
                future.cancel()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.timeout(600)
def test_a_job_whose_parent_is_killed_there_is_resumed(ended: dict[str, Future[None]], name: str) -> None:
    ended[name].result()


def test_every_boundary_has_a_case_that_dies_there() -> None:
    covered = Counter(at for case in CASES.values() for at, _ in case.deaths)
    assert set(covered) == set(Boundary)
