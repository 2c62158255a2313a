"""Every way in which a job's parent can end, what becomes of its children, and the tests that prove it.

The table in docs/operations.md is made from `ENDINGS`, its numbers from the settings' defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.core.machine.step import PARENT_CANCELLED_SECONDS
from orchestrator.flows.parent import HOOK_SECONDS
from orchestrator.reactor.silence import SILENT_PERIODS
from orchestrator.reactor.watch import QUIET_SECONDS
from orchestrator.settings import Settings


@dataclass(frozen=True)
class Ending:
    """A row; `{...}` in its texts are numbers of seconds from `numbers()`.

    Args:
        proofs: `file::test`, relative to `tests/`.
    """

    way: str
    asked: str
    children: str
    settled_by: str
    within: str
    proofs: tuple[str, ...]


def numbers() -> Mapping[str, float]:
    """Seconds, from the settings' defaults and the constants of the code."""
    s = Settings.model_construct()
    fence = 2.0
    return {
        "fence": fence,
        "grace": s.item_grace_seconds,
        "deadline": s.cancel_deadline_seconds,
        "own": PARENT_CANCELLED_SECONDS,
        "read": s.poll_seconds,
        "quiet": 2 * s.poll_seconds,
        "minutes": QUIET_SECONDS / 60,
        "lost": s.lease_seconds,
        "gone": s.lease_seconds + fence + s.item_grace_seconds,
        "hook": HOOK_SECONDS,
        "silent": SILENT_PERIODS * s.alive_seconds + s.cancel_deadline_seconds,
    }


CANCEL = "start no item after {fence} s; {grace} s later they end, as Cancelled"
FINISH = "finish their batch"
LAST = "when the last batch is over; a child without sign of life is given up after {silent} s"
CLOSE, REAL = "unit/flows/test_close_policy.py", "integration/test_job_close_policy.py"
PARENTS, STOPS = "integration/test_job_parents.py", "integration/test_job_stops.py"
RACES, SILENCE = "reactor/test_races.py", "reactor/test_silence.py"
BESIDE = "test_an_error_beside_an_async_call_ends_its_children_as_asked"
THROWN = "test_an_exception_thrown_into_the_thread_of_a_sync_call_ends_its_children_as_asked"
FAULT = "test_a_fault_of_ours_ends_the_children_as_asked_and_is_raised_when_the_job_is_settled"
CANCELLED = "test_a_cancelled_caller_ends_its_children_as_asked"
HOOK = "test_the_hook_of_a_cancelled_parent_settles_what_it_left_as_asked"
GONE = "test_children_of_parents_that_are_gone_end_by_themselves_or_finish_their_batch_as_asked"

ENDINGS = (
    Ending(
        "a kill switch or `enough_when` is true; `orchestrator stop`", "`on_trip`, `--cancel`: cancel", CANCEL,
        "the parent", "{deadline} s; who was not seen to end is named",
        (f"{RACES}::test_no_item_starts_later_than_one_look_after_the_stop",
         f"{RACES}::test_a_child_that_hears_no_cancel_is_named_unconfirmed_at_the_deadline"),
    ),
    Ending(
        "the same", "`on_trip`, `--drain`: drain", FINISH, "the parent", LAST,
        (f"{RACES}::test_drain_lets_children_finish_and_starts_nothing_more",
         f"{SILENCE}::test_a_draining_job_does_not_wait_for_a_child_that_vanished"),
    ),
    Ending(
        "cancelled in the UI or by the API, Ctrl-C, SIGTERM", "`on_parent_cancelled`: cancel", CANCEL,
        "the parent, in its last {own} s; what is left, a hook of `orchestrate`", "{deadline} s",
        (f"{PARENTS}::test_a_parent_cancelled_in_the_ui_ends_its_children_and_reports",
         f"{REAL}::test_ones_own_flow_that_is_cancelled_in_the_ui_ends_its_children_and_reports",
         f"{CLOSE}::{CANCELLED}", f"{CLOSE}::{HOOK}"),
    ),
    Ending(
        "the same", "drain", FINISH,
        "the parent or the hook, while they last ({hook} s); then `orchestrator cleanup`", LAST,
        (f"{REAL}::test_children_of_a_cancelled_parent_that_drains_finish_their_batch_and_nothing_more_is_started",
         f"{CLOSE}::{CANCELLED}",
         f"{CLOSE}::test_the_hook_waits_for_children_that_finish_their_batch_no_longer_than_it_says"),
    ),
    Ending(
        "the same", "abandon", FINISH, "whoever resumes the job", "when the last batch is over",
        (f"{PARENTS}::test_children_of_a_cancelled_parent_that_abandons_them_finish_their_batch",
         f"{CLOSE}::{CANCELLED}"),
    ),
    Ending(
        "cancelled while its worker is dead", "as above", "as above", "the parent, which reads its own run",
        "{read} s later than above ({quiet} s after {minutes} quiet minutes)",
        (f"{REAL}::test_a_parent_whose_worker_is_dead_finds_by_itself_that_it_is_cancelled",
         "unit/reactor/test_watch.py::"
         "test_the_parents_own_cancellation_is_read_where_nobody_is_left_to_tell_it_and_told_once"),
    ),
    Ending(
        "an error or a timeout in your flow around `orchestrate()`", "as when cancelled", "as when cancelled",
        "the call, before the error goes on", "{deadline} s, or as above",
        (f"{CLOSE}::{BESIDE}", f"{CLOSE}::{THROWN}"),
    ),
    Ending(
        "an error of ours", "cancel; drain", "as when cancelled", "the same process; the error is raised afterwards",
        "{deadline} s, or as above", (f"{CLOSE}::{FAULT}",),
    ),
    Ending(
        "the same", "abandon", FINISH, "whoever resumes the job", "when the last batch is over",
        (f"{CLOSE}::{FAULT}",),
    ),
    Ending(
        "killed, crashed, `os._exit`, machine gone", "cancel",
        "start no item once it was silent for {lost} s; then they end, as Cancelled",
        "Retry in the UI or `orchestrator resume`, which goes on; else `orchestrator cleanup`", "{gone} s",
        (f"{REAL}::{GONE}", f"{PARENTS}::test_a_killed_parent_run_goes_on_when_it_is_retried_in_the_ui",
         f"{PARENTS}::test_a_killed_script_is_resumed_by_job_id_and_its_live_children_are_adopted",
         f"{CLOSE}::test_the_hook_of_a_crashed_parent_leaves_a_job_alone_that_can_be_resumed"),
    ),
    Ending(
        "the same", "drain, abandon", FINISH, "the same", "when the last batch is over", (f"{REAL}::{GONE}",),
    ),
    Ending(
        "the same, while it stopped its job", "any", "obey the stop", "a hook of `orchestrate`; else as above",
        "{deadline} s",
        (f"{CLOSE}::test_the_hook_of_a_parent_that_crashed_while_it_stopped_its_job_finishes_that",),
    ),
)  # fmt: skip


def rows() -> list[tuple[str, ...]]:
    """The table's rows with their numbers in."""
    values = {name: f"{value:g}" for name, value in numbers().items()}
    return [
        tuple(text.format(**values) for text in (e.way, e.asked, e.children, e.settled_by, e.within)) for e in ENDINGS
    ]
