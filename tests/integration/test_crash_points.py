"""A parent that is killed at any of its steps, resumed on a real server: nothing is lost, nothing is done twice.

Each case is one job: its parents die one after another at the boundaries it names, each taking over from the one
before (by the same call, or by resuming), then somebody ends the job, and a checker reads folder, server and the
items' own account. In `make test` a few jobs die at all boundaries, one after another; the campaign has a job for each
boundary alone. Cases run a few at a time on the shared stack; each test waits for its own.
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
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
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
from tests.integration.crash_parent import start as start_parent
from tests.integration.job_support import MARKS, Watched, check, check_runs, deploy_work, items
from tests.support import eventually

B = Boundary
pytestmark = MARKS
AT_ONCE = 3  # cases that run at the same time
PARENT_SECONDS = 180.0  # a parent that is not dead by then never came to its boundary
QUICK = {"ORCHESTRATOR_FENCE_SECONDS": "1", "ORCHESTRATOR_ITEM_GRACE_SECONDS": "2", "ORCHESTRATOR_POLL_SECONDS": "0.5"}
BY_HAND = StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "by hand", "test")
Death = Boundary | tuple[Boundary, int]  # at its first pass, or at that one


@dataclass(frozen=True)
class Case:
    """One job and the deaths of its parents.

    Args:
        request: Further parameters of `orchestrate()`. Of its texts and its items', `{work}`, `{idle}` and `{home}`
            are replaced: the batch deployment, the same on a pool that no worker polls, the case's folder.
        during: Called while the first parent lives.
        after: Called between the last death and the end.
        lost: Whether Prefect's answers to creations get lost as long as parents die.
        environment: Of the parents that die.
        ends: (verdict, succeeded, failed, unknown, not started) of the report.
        keys: (batch, attempt) of each child run there may be.
        twice: Items that were in progress when their run died.
        by_command: Whether `orchestrator resume` ends the job, or else the same call once more.
        is_over: The job is over when its last parent dies: it did what was asked ("report": the old report is given
            back), or not ("refused": whoever resumes it is told so).
    """

    deaths: tuple[Death, ...]
    items: list[dict[str, Any]]
    request: dict[str, Any] = field(default_factory=dict)
    during: Callable[[Watched], None] | None = None
    after: Callable[[Watched], None] | None = None
    lost: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    ends: tuple[str, int, int, int, int] = ("completed", 3, 1, 0, 0)
    keys: frozenset[tuple[int, int]] = frozenset({(0, 0)})
    twice: frozenset[int] = frozenset()
    by_command: bool = False
    is_over: str | None = None


# ---------------------------------------------------------------------- jobs


def small(*deaths: Death, **more: Any) -> Case:
    """One batch, one child run; one item fails."""
    return Case(deaths, [{"n": 0}, {"n": 1, "fail": "ValueError"}, {"n": 2}, {"n": 3}], {"batch_size": 4}, **more)


def pair(*deaths: Death, **more: Any) -> Case:
    """Two batches at once; one item fails."""
    case = small(*deaths, keys=frozenset({(0, 0), (1, 0)}), **more)
    return replace(case, request={"batch_size": 2, "max_in_flight": 2})


def held(*deaths: Death, **more: Any) -> Case:
    """Two batches at once, and their first items do not end while parents die."""
    case = pair(*deaths, after=open_gate, **more)
    return replace(case, items=[item | {"gate": "{home}/gate"} if item["n"] in (0, 2) else item for item in case.items])


def losing(*deaths: Death, **more: Any) -> Case:
    """The first child run dies of its second item."""
    what = [{"n": 0}, {"n": 1, "die_once": "{home}/died"}, {"n": 2}]
    # Items of a batch run in several threads: any of them may have been in progress.
    return Case(
        deaths, what, {"batch_size": 3}, ends=("completed", 3, 0, 0, 0), keys=frozenset({(0, 0), (0, 1)}),
        twice=frozenset({0, 1, 2}), **more,
    )  # fmt: skip


def recalled(*deaths: Death, **more: Any) -> Case:
    """The first child run takes too long, and is to be cancelled for it."""
    what = [{"n": 0, "gate": "{home}/gate"}, {"n": 1}]
    return Case(
        deaths, what, {"batch_size": 2, "batch_timeout_seconds": 15}, after=open_gate,
        ends=("completed", 2, 0, 0, 0), keys=frozenset({(0, 0), (0, 1)}), twice=frozenset({0, 1}), **more,
    )  # fmt: skip


def unanswered(*deaths: Death, **more: Any) -> Case:
    """Nobody knows whether the child run was created; it was."""
    return replace(small(*deaths, **more), lost=True)


def tripping(*deaths: Death, **more: Any) -> Case:
    """The first item trips the kill switch; the second batch's run waits for a worker; the third is not submitted."""
    what = [{"n": 0, "g": "a", "fail": "ValueError"}, {"n": 1, "g": "b"}, {"n": 2, "g": "c"}]
    request = {
        "deployment": {"a": "{work}", "*": "{idle}"}, "group_by": "g", "batch_size": 1, "max_in_flight": 2,
        "kill_switch": "failed >= 1",
    }  # fmt: skip
    return Case(
        deaths, what, request, ends=("tripped", 0, 1, 0, 2), keys=frozenset({(0, 0), (1, 0)}), **more,
    )  # fmt: skip


def draining(*deaths: Death, **more: Any) -> Case:
    """As `tripping`, and the second batch's run is at work and may finish."""
    what = [{"n": 0, "fail": "ValueError"}, {"n": 1, "gate": "{home}/gate"}, {"n": 2}]
    request = {"batch_size": 1, "max_in_flight": 2, "kill_switch": "failed >= 1", "on_trip": "drain"}
    return Case(
        deaths, what, request, after=open_gate, ends=("tripped", 1, 1, 0, 1), keys=frozenset({(0, 0), (1, 0)}), **more
    )


def sparing(*deaths: Death, **more: Any) -> Case:
    """Stopped by hand while the parent does not know yet that its child runs."""

    def stop(watched: Watched) -> None:
        watched.wait_until_started(1, PARENT_SECONDS)
        watched.folder.request_stop(BY_HAND)

    what = [{"n": 0, "gate": "{home}/gate"}, {"n": 1}]
    return Case(
        deaths, what, {"batch_size": 1, "max_in_flight": 1}, during=stop,
        environment={"ORCHESTRATOR_POLL_SECONDS": "60"}, ends=("cancelled", 0, 0, 1, 1), **more,
    )  # fmt: skip


def waiting(*deaths: Death, **more: Any) -> Case:
    """Stopped by hand while its only child run waits for a worker."""

    def stop(watched: Watched) -> None:
        eventually(watched.children, PARENT_SECONDS, "the child run")
        watched.folder.request_stop(BY_HAND)

    return Case(
        deaths, items(2), {"deployment": "{idle}", "batch_size": 1}, during=stop, ends=("cancelled", 0, 0, 0, 2), **more
    )


def resolving(*deaths: Death, **more: Any) -> Case:
    """As `waiting`, and nobody knows whether the child run was created."""
    return replace(waiting(*deaths, **more), lost=True)


def nothing(*deaths: Death, **more: Any) -> Case:
    """No items at all."""
    return Case(deaths, [], ends=("completed", 0, 0, 0, 0), keys=frozenset(), **more)


def open_gate(watched: Watched) -> None:
    (watched.home / "gate").touch()


BEFORE = (
    B.STAGING_BEGUN, B.ITEMS_STAGED, B.JOB_WRITTEN, B.EPOCH_CLAIMED, B.LEASE_BEGUN, B.GATEWAY_OPEN, B.NOTICES_READ,
    B.PAGE_BEGUN, B.STARTED_EMITTED, B.SUBMIT_READY,
)  # fmt: skip
RESTORING = (B.RESTORE_LISTED, B.RESTORE_ASKED, B.RESTORE_READ, B.RESTORE_PLAYED)
ENDING = (B.END_READ, B.ATTEMPT_CLOSED, B.BATCH_SETTLED, B.FINISH_DECIDED, B.JOURNAL_WRITTEN)

# What takes longest comes first.
CHAINS: dict[str, Case] = {
    "when_a_child_takes_too_long": recalled(B.RECALL_WRITTEN, B.RESTORE_READ),
    "when_a_child_is_lost": losing(B.END_READ, B.ATTEMPT_CLOSED, B.RESTORE_READ, B.ATTEMPT_LOST, B.SUBMIT_ANSWERED),
    "while_children_run": held(B.SUBMIT_ANSWERED, *RESTORING, (B.SUBMIT_PLAYED, 2), (B.CHILDREN_READ, 2)),
    "when_it_trips": tripping(B.STOP_WRITTEN, B.CANCEL_READY, B.CANCEL_SENT, by_command=True),
    "when_it_drains": draining(B.DRAIN_WRITTEN),
    "when_a_child_runs_unknown_to_it": sparing(B.SPARED, by_command=True),
    "when_an_answer_is_lost": unanswered(B.SUBMIT_LOST),
    "when_it_asks_for_a_lost_child": resolving(B.RESOLVE_READY),
    "when_it_found_a_lost_child": resolving(B.RESOLVE_ANSWERED),
    "before_its_first_child": small(*BEFORE, by_command=True),
    "as_children_end": pair(*ENDING[1:], B.REPORT_WRITTEN, is_over="report"),
    "after_the_report_of_a_stop": waiting(B.PAGE_PUBLISHED, is_over="refused"),
    "after_a_stop": waiting(B.FINISHED_EMITTED, is_over="refused", by_command=True),
    "after_all": nothing(B.LEASE_ENDED, is_over="report", by_command=True),
}


def _alone() -> dict[str, Case]:
    over = (B.REPORT_WRITTEN, B.PAGE_PUBLISHED, B.FINISHED_EMITTED, B.LEASE_ENDED)
    cases = {at.name.lower(): small(at) for at in (*BEFORE, *ENDING)}
    cases |= {at.name.lower(): small(at, is_over="report") for at in over}
    cases |= {f"{at.name.lower()}_of_a_trip": tripping(at, is_over="refused") for at in over}
    cases |= {at.name.lower(): pair((B.SUBMIT_PLAYED, 2), at) for at in RESTORING}
    cases |= {
        f"{at.name.lower()}_of_many": pair((at, 2)) for at in (B.SUBMIT_READY, B.SUBMIT_ANSWERED, B.SUBMIT_PLAYED)
    }
    cases |= {f"{at.name.lower()}_of_many": pair(at) for at in (B.SUBMIT_ANSWERED, B.CHILDREN_READ, *ENDING)}
    cases |= {f"{at.name.lower()}_of_a_loss": losing(at) for at in (B.ATTEMPT_CLOSED, B.ATTEMPT_LOST)}
    cases |= {"submit_answered_of_a_loss": losing((B.SUBMIT_ANSWERED, 2)), "submit_lost": unanswered(B.SUBMIT_LOST)}
    cases |= {f"{at.name.lower()}_of_a_loss": recalled(at) for at in (B.RECALL_WRITTEN, B.CANCEL_SENT)}
    cases |= {at.name.lower(): tripping(at) for at in (B.STOP_WRITTEN, B.CANCEL_READY, B.CANCEL_SENT)}
    cases |= {"drain_written": draining(B.DRAIN_WRITTEN), "spared": sparing(B.SPARED)}
    cases |= {at.name.lower(): resolving(at) for at in (B.RESOLVE_READY, B.RESOLVE_ANSWERED)}
    return {name: replace(case, by_command=bool(n % 2)) for n, (name, case) in enumerate(cases.items())}


ALONE = _alone()

# ---------------------------------------------------------------------- one case


@dataclass(frozen=True)
class Here:
    """What all cases share."""

    stack: Stack
    work: str
    idle: str

    @property
    def environment(self) -> dict[str, str]:
        return self.stack.environment | QUICK

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


def run_case(here: Here, name: str, case: Case, home: Path) -> None:
    """Let the parents die, end the job, check it."""
    home.mkdir()
    began = time.monotonic()
    watched = Watched(here.stack, home, f"crash-{name}-{secrets.token_hex(2)}"[-80:])
    request = {
        "deployment": "{work}", "max_in_flight": 1, "kill_switch": None, "fail_if": None, **case.request,
        "items": case.items,
    }  # fmt: skip
    request = here.fill(request, home) | watched.request
    for number, death in enumerate(case.deaths):
        at, nth = death if isinstance(death, tuple) else (death, 1)
        by_call = number % 2 == 0 or not exists(watched)
        die(here, case, watched, request if by_call else None, at, nth, first=number == 0)
    if case.after is not None:
        case.after(watched)
    by_command = case.by_command and exists(watched)
    report = by_the_command_line(here, watched, case) if by_command else by_the_same_call(watched, request, case)
    n = report.items
    assert (report.verdict.value, n.succeeded, n.failed, n.unknown, n.not_started) == case.ends
    check(watched, report, max_in_flight=request["max_in_flight"])
    check_runs(watched, case.keys, case.twice)
    print(f"{name}: {len(case.deaths)} parents died; {time.monotonic() - began:.1f} s")


def exists(watched: Watched) -> bool:
    """Whether the job does: otherwise nobody can resume it, and the same call begins anew."""
    try:
        watched.folder.read_job()
    except JobNotFoundError:
        return False
    return True


def die(
    here: Here, case: Case, watched: Watched, request: dict[str, Any] | None, at: Boundary, nth: int, *, first: bool
) -> None:
    """Start a parent, and see it die where it should."""
    notes, log = watched.home / f"passed-{secrets.token_hex(2)}.txt", watched.home / "parent.log"
    patience = 0.5 if case.lost else 20.0
    plan = Plan(watched.job, watched.storage, at.name, nth, str(notes), str(log), request, patience)
    with ExitStack() as stack:
        environment = here.environment | case.environment
        if case.lost:
            environment["PREFECT_API_URL"] = stack.enter_context(losing_answers(here.stack))
        process = start_parent(plan, environment)
        try:
            if first and case.during is not None:
                case.during(watched)
            process.join(PARENT_SECONDS)
            passed = notes.read_text().split() if notes.exists() else []
            assert process.exitcode == -signal.SIGKILL, f"it ended with {process.exitcode}"
            assert (passed[-1], passed.count(at.name)) == (at.name, nth)
        except AssertionError as e:
            printed = log.read_text()[-3000:] if log.exists() else ""
            e.add_note(f"the parent that was to die at {at.name}, pass {nth}, printed:\n{printed}")
            raise
        finally:
            process.kill()
            process.join()


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
    before = watched.folder.read_report() if exists(watched) else None
    assert (before is not None) is (case.is_over is not None)
    if case.is_over == "refused":
        with pytest.raises(JobConflictError, match="is over"):
            orchestrate_sync(**request)
        return Report.from_json(before or {})
    report = orchestrate_sync(**request, on_failure="return")
    assert before in (None, report.to_json())
    return report


def by_the_command_line(here: Here, watched: Watched, case: Case) -> Report:
    before = watched.folder.read_report()
    assert (before is not None) is (case.is_over is not None)
    command = [sys.executable, "-m", "orchestrator", "resume", watched.job, "--storage", watched.storage, "--json"]
    done = subprocess.run(
        command, env=here.environment, capture_output=True, text=True, timeout=PARENT_SECONDS, check=False
    )
    if case.is_over == "refused":
        assert done.returncode == 2, done.stderr
        assert "is over" in done.stderr
        return Report.from_json(before or {})
    assert done.returncode in (0, 1, 4), done.stderr
    report = Report.from_json(json.loads(done.stdout))
    assert done.returncode == report.exit_code
    assert before in (None, report.to_json())
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
                name: pool.submit(contextvars.copy_context().run, run_case, here, name, case, home / name)
                for name, case in {**CHAINS, **ALONE}.items()
                if name in wanted
            }
            yield futures
            for future in futures.values():
                future.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.timeout(900)
def test_a_job_whose_parents_are_killed_loses_nothing_and_does_nothing_twice(
    ended: dict[str, Future[None]], name: str
) -> None:
    ended[name].result()


@pytest.mark.campaign
@pytest.mark.parametrize("name", ALONE)
@pytest.mark.timeout(900)
def test_a_job_whose_parent_is_killed_there_alone_loses_nothing_and_does_nothing_twice(
    ended: dict[str, Future[None]], name: str
) -> None:
    ended[name].result()


@pytest.mark.parametrize("cases", [CHAINS, ALONE], ids=["one after another", "alone"])
def test_at_every_boundary_a_parent_dies(cases: dict[str, Case]) -> None:
    deaths = {death[0] if isinstance(death, tuple) else death for case in cases.values() for death in case.deaths}
    assert deaths == set(Boundary)
