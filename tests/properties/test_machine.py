"""The machine under any order, repetition and loss of news, against a small model of Prefect and its children."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator.core.killswitch import parse
from orchestrator.core.machine import Setup, Stage, State, step
from orchestrator.core.machine import events as ev
from orchestrator.core.model import (
    Counts,
    EndReason,
    Phase,
    Progress,
    Reading,
    RunId,
    StopCause,
    StopMode,
    StopRecord,
    Verdict,
)

LIVES = ("start", "item", "item", "bad item", "end", "die", "vanish", "cancel", "delete")
ENDS = (Phase.COMPLETED, Phase.FAILED, Phase.CRASHED, Phase.CANCELLED)


@dataclass
class Child:
    """A child as the model of Prefect has it: what it really did, told or not."""

    batch: int
    attempt: int
    run: RunId
    phase: Phase = Phase.SCHEDULED
    succeeded: int = 0
    failed: int = 0
    sequence: int = 0
    revoked: bool = False
    ended: EndReason | None = None
    deleted: bool = False
    vanished: bool = False  # its process is gone, and nobody tells: its phase stays what it is


class JobUnderChaos(RuleBasedStateMachine):
    """Children live their own lives; the machine hears of it late, twice, out of order or never."""

    @initialize(
        counts=st.lists(st.integers(1, 5), min_size=1, max_size=8),
        window=st.integers(1, 4),
        retries=st.integers(0, 2),
        concurrency=st.integers(1, 3),
        switch=st.sampled_from([None, "failed >= 4", "crashed_batches >= 2", "failed_rate > 0.5 and settled >= 4"]),
        enough=st.sampled_from([None, "succeeded >= 9"]),
        on_trip=st.sampled_from(list(StopMode)),
    )
    def begin(self, counts, window, retries, concurrency, switch, enough, on_trip):
        setup = Setup(
            counts=counts,
            max_in_flight=window,
            kill_switch=parse(switch) if switch else None,
            enough_when=parse(enough, field="enough_when") if enough else None,
            on_trip=on_trip,
            batch_retries=retries,
            start_timeout=50,
            submit_concurrency=concurrency,
        )
        self.counts, self.window = counts, window
        self.state = State(setup)
        self.now = 0.0
        self.children: dict[tuple[int, int], Child] = {}
        self.commands: list[ev.Command] = []
        self.news: list[ev.Event] = []
        self.created_after_stop: list[tuple[int, int]] = []
        self.stop_written = False
        self.silent: set[tuple[int, int]] = set()
        self.play(ev.Started())

    # -------------------------------------------------------------- the world

    def play(self, event: ev.Event) -> None:
        for command in step(self.state, event, self.now):
            if isinstance(command, ev.WriteStop):
                self.stop_written = True
            elif isinstance(command, ev.Submit):
                assert not self.stop_written, "a creation was commanded after the stop was written"
            self.commands.append(command)

    def take(self, data, kind):
        found = [c for c in self.commands if isinstance(c, kind)]
        command = data.draw(st.sampled_from(found))
        self.commands.remove(command)
        return command

    def pending(self, kind) -> bool:
        return any(isinstance(c, kind) for c in self.commands)

    def create(self, batch: int, attempt: int) -> Child:
        key = (batch, attempt)
        if key not in self.children:
            self.children[key] = Child(batch, attempt, RunId(f"run-{batch}-{attempt}"))
        return self.children[key]

    @precondition(lambda self: self.pending(ev.Submit))
    @rule(data=st.data(), how=st.sampled_from(["ok", "ok", "ok", "lost after", "lost before", "away", "refused"]))
    def prefect_answers_a_creation(self, data, how):
        command = self.take(data, ev.Submit)
        batch, attempt = command.batch, command.attempt
        if how in ("ok", "lost after"):
            child = self.create(batch, attempt)
        if how == "ok":
            self.play(ev.Submitted(batch, attempt, child.run, child.phase))
        elif how.startswith("lost"):
            self.play(ev.SubmissionLost(batch, attempt))
        elif how == "away":
            self.play(ev.SubmissionDeferred(batch, attempt))
        elif data.draw(st.integers(0, 9)) == 0:
            self.play(ev.SubmissionRefused(batch, attempt, "no such deployment"))
        else:
            self.commands.append(command)

    @precondition(lambda self: self.pending(ev.Resolve))
    @rule(data=st.data(), away=st.booleans())
    def prefect_answers_a_question_by_key(self, data, away):
        command = self.take(data, ev.Resolve)
        child = self.children.get((command.batch, command.attempt))
        if away:
            self.play(ev.SubmissionDeferred(command.batch, command.attempt))
        elif child is None:
            self.play(ev.SubmissionAbsent(command.batch, command.attempt))
        else:
            self.play(ev.Submitted(command.batch, command.attempt, child.run, child.phase))

    @precondition(lambda self: self.pending(ev.Cancel))
    @rule(data=st.data())
    def prefect_takes_a_cancel(self, data):
        command = self.take(data, ev.Cancel)
        for child in self.children.values():
            if child.run in command.runs and not child.phase.is_terminal:
                child.phase = Phase.CANCELLED if child.phase is Phase.SCHEDULED else Phase.CANCELLING

    @precondition(lambda self: self.pending(ev.Recall))
    @rule(data=st.data())
    def why_an_attempt_is_given_up_is_written_and_its_cancel_asked_for(self, data):
        command = self.take(data, ev.Recall)
        self.commands.append(ev.Cancel((command.run,)))

    @precondition(lambda self: self.pending(ev.Close))
    @rule(data=st.data(), unreadable=st.integers(0, 19))
    def the_ledger_is_read(self, data, unreadable):
        command = self.take(data, ev.Close)
        if unreadable == 0:
            self.play(ev.CloseFailed(command.batch, command.attempt, "disk on fire"))
            return
        child = self.children.get((command.batch, command.attempt))
        self.play(ev.Closed(command.batch, command.attempt, self.read(command.batch, child)))

    def read(self, batch: int, child: Child | None) -> Reading:
        """As the job folder would: everything that counts of this batch, over all attempts."""
        count = self.counts[batch]
        family = [c for (b, _), c in sorted(self.children.items()) if b == batch]
        succeeded, failed = sum(c.succeeded for c in family), sum(c.failed for c in family)
        counts = Counts(succeeded, failed, failed, {"ValueError": failed} if failed else {})
        rest = count - succeeded - failed
        if child is None:
            return Reading(counts, 0, rest, ended=False)
        if child.ended is None:
            child.revoked = True
            return Reading(counts, rest, 0, ended=False)
        return Reading(counts, 0, rest, ended=True, reason=child.ended)

    # -------------------------------------------------------------- lives of children

    def living(self):
        return [c for c in self.children.values() if not c.phase.is_terminal and not c.deleted]

    @precondition(lambda self: self.living())
    @rule(data=st.data(), what=st.sampled_from(LIVES))
    def a_child_lives(self, data, what):
        child = data.draw(st.sampled_from(self.living()))
        left = self.counts[child.batch] - sum(
            c.succeeded + c.failed for c in self.children.values() if c.batch == child.batch
        )
        if child.vanished and what not in ("cancel", "delete"):
            return
        running = child.phase in (Phase.RUNNING, Phase.CANCELLING) and not child.revoked
        if what == "start" and child.phase in (Phase.SCHEDULED, Phase.PENDING):
            child.phase = Phase.PENDING if child.phase is Phase.SCHEDULED else Phase.RUNNING
        elif what == "item" and running and left:
            child.succeeded += 1
        elif what == "bad item" and running and left:
            child.failed += 1
        elif what == "end" and running:
            if child.phase is Phase.CANCELLING:
                child.phase, child.ended = Phase.CANCELLED, EndReason.TERMINATED
            elif left == 0:
                child.phase, child.ended = Phase.COMPLETED, EndReason.COMPLETED
            else:
                child.phase, child.ended = Phase.CANCELLED, EndReason.STOPPED if self.stop_written else EndReason.STUCK
        elif what == "die":
            child.phase = Phase.CANCELLED if child.phase is Phase.CANCELLING else Phase.CRASHED
        elif what == "vanish":
            child.vanished = True
        elif what == "cancel":
            child.phase = Phase.CANCELLED if child.phase is Phase.SCHEDULED else Phase.CANCELLING
        elif what == "delete" and data.draw(st.integers(0, 4)) == 0:
            child.deleted = True
        child.sequence += 1

    # -------------------------------------------------------------- news of them

    @precondition(lambda self: self.children)
    @rule(data=st.data())
    def a_record_is_read(self, data):
        child = data.draw(st.sampled_from(list(self.children.values())))
        self.news.append(
            ev.RunVanished(child.batch, child.attempt)
            if child.deleted
            else ev.RunSeen(child.batch, child.attempt, child.phase, child.phase is Phase.RUNNING, "")
        )

    @precondition(lambda self: self.living())
    @rule(data=st.data())
    def a_sign_of_life_stands_still(self, data):
        """Of a process that is gone, or of one that only stands, and will find itself given up when it wakes."""
        child = data.draw(st.sampled_from(self.living()))
        if child.phase is Phase.RUNNING:
            self.silent.add((child.batch, child.attempt))
            self.news.append(ev.FellSilent(child.batch, child.attempt, 95.0))

    @precondition(lambda self: self.children)
    @rule(data=st.data())
    def progress_is_read(self, data):
        child = data.draw(st.sampled_from(list(self.children.values())))
        family = [c for c in self.children.values() if c.batch == child.batch]
        succeeded, failed = sum(c.succeeded for c in family), sum(c.failed for c in family)
        counts = Counts(succeeded, failed, failed)
        self.news.append(ev.Progressed(Progress(child.batch, child.attempt, child.sequence, counts)))

    @precondition(lambda self: self.news)
    @rule(data=st.data(), keep=st.booleans(), lose=st.integers(0, 4))
    def news_arrives(self, data, keep, lose):
        """In any order; some of it twice, some of it never."""
        event = data.draw(st.sampled_from(self.news))
        if not keep:
            self.news.remove(event)
        if lose == 0:
            return
        # News of a run is only ever told of a run the machine knows by now.
        known = self.state.batches[event.progress.batch if isinstance(event, ev.Progressed) else event.batch]
        if not isinstance(event, ev.Progressed) and (
            known.stage in (Stage.WAITING, Stage.SUBMITTING, Stage.UNKNOWN) and event.attempt == known.attempt
        ):
            return
        self.play(event)

    @rule(seconds=st.sampled_from([0.1, 1, 3, 20, 60]))
    def time_passes(self, seconds):
        self.now += seconds
        self.play(ev.Ticked())

    @rule(mode=st.sampled_from(list(StopMode)), chance=st.integers(0, 9))
    def somebody_stops_it(self, mode, chance):
        if chance == 0:
            self.play(ev.StopRequested(StopRecord(mode, StopCause.REQUESTED, "enough for today", "a person")))

    @rule(window=st.integers(1, 4), paused=st.booleans())
    def an_operator_changes_the_window(self, window, paused):
        self.window = max(self.window, window)
        self.play(ev.ControlChanged(max_in_flight=window, paused=paused))
        self.play(ev.ControlChanged(paused=False))

    # -------------------------------------------------------------- what always holds

    @invariant()
    def every_item_is_in_exactly_one_count(self):
        tally, state = self.state.tally, self.state
        for batch in state.batches:
            if batch.stage is Stage.SETTLED:
                reading = batch.reading
                assert reading.counts.settled + reading.unknown + reading.not_started == self.counts[batch.index]
        assert tally.succeeded + tally.failed + tally.unknown + tally.not_started <= tally.total
        if state.verdict is not None:
            assert tally.succeeded + tally.failed + tally.unknown + tally.not_started == tally.total
            assert tally.settled_batches == len(self.counts)

    @invariant()
    def the_window_holds(self):
        """No more children alive, asked for or being cancelled than the window ever was (those given up are named)."""
        holding = [b for b in self.state.batches if b.stage not in (Stage.WAITING, Stage.SETTLED)]
        assert {b.index for b in holding} == self.state.active
        assert len(holding) <= self.window
        assert self.state.submitting == sum(b.stage is Stage.SUBMITTING for b in holding)
        named = {(b.index, b.attempt) for b in self.state.batches if b.unconfirmed or b.reading}
        silent = {(c.batch, c.attempt) for c in self.living() if c.revoked} & self.silent
        unsettled = {(c.batch, c.attempt) for c in self.living()} - named - silent
        assert len(unsettled) <= self.window

    @invariant()
    def two_attempts_never_live_at_once_unrevoked(self):
        by_batch: dict[int, int] = {}
        for child in self.living():
            if not child.revoked:
                by_batch[child.batch] = by_batch.get(child.batch, 0) + 1
        assert all(n <= 1 for n in by_batch.values())

    @invariant()
    def a_verdict_is_final_and_has_a_cause(self):
        if self.state.verdict not in (None, Verdict.COMPLETED):
            assert self.state.stop is not None

    def teardown(self):
        """Whatever happened: once the world answers, the job ends, and within the deadline if it was stopped."""
        if not hasattr(self, "state"):
            return
        for _ in range(3000):
            if self.state.is_over:
                break
            self.now += 1.0
            self.settle_the_world()
        assert self.state.is_over, f"not over: {[(b.stage, b.phase) for b in self.state.batches]}"
        self.every_item_is_in_exactly_one_count()

    def settle_the_world(self):
        for command in [*self.commands]:
            self.commands.remove(command)
            match command:
                case ev.Submit(batch, attempt):
                    child = self.create(batch, attempt)
                    self.play(ev.Submitted(batch, attempt, child.run, child.phase))
                case ev.Resolve(batch, attempt):
                    child = self.children.get((batch, attempt))
                    self.play(
                        ev.Submitted(batch, attempt, child.run, child.phase)
                        if child
                        else ev.SubmissionAbsent(batch, attempt)
                    )
                case ev.Close(batch, attempt):
                    self.play(ev.Closed(batch, attempt, self.read(batch, self.children.get((batch, attempt)))))
        for child in self.children.values():
            left = self.counts[child.batch] - sum(
                c.succeeded + c.failed for c in self.children.values() if c.batch == child.batch
            )
            if not child.phase.is_terminal:
                if child.phase is Phase.CANCELLING:
                    child.phase = Phase.CANCELLED
                elif child.vanished:
                    if child.phase is not Phase.RUNNING:
                        child.phase = Phase.CRASHED  # its worker says so
                else:
                    child.succeeded += 0 if child.revoked else left
                    child.phase, child.ended = Phase.COMPLETED, EndReason.COMPLETED
            known = self.state.batches[child.batch]
            if known.attempt == child.attempt and known.stage in (Stage.IN_FLIGHT, Stage.STOPPING):
                self.play(ev.RunVanished(child.batch, child.attempt) if child.deleted else
                          ev.RunSeen(child.batch, child.attempt, child.phase))  # fmt: skip
                if child.vanished:
                    self.play(ev.FellSilent(child.batch, child.attempt, 95.0))
        self.play(ev.Ticked())


JobUnderChaos.TestCase.settings = settings(
    max_examples=250, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestJobUnderChaos = JobUnderChaos.TestCase
