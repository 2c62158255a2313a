"""What must hold of every simulated job, whatever the nemesis did to it.

Some rules are checked while it happens, in `world.World`:

* **G2.** When Prefect accepts a creation, the runs that never ended (created, not deleted, never in a terminal state)
  are at most the window of the parent that sent it: the larger of what it was when that was first decided and is now.
  Runs that another parent had created since this one took over are left out: requests of a dead parent that were
  still on their way, and what an older parent does until it sees that it was superseded; nobody could count them. So
  is a run that was over and came back (its end was read), one under a key whose first run had been deleted, and one
  that was cancelled because its process gave no sign of life or never came up, once it was given up (Prefect ends it
  after five minutes). After the window was made smaller, runs in flight may be more than it: then nothing is created.
* **G3.** No creation is *sent* by a parent that knows of a stop, or that read one from the folder, or that could have
  read it (one look plus a tenth of a second after it was written, in scenarios whose storage is always there). What
  had been sent before may still be carried out. No item starts later than one look (2 s) after a stop that cancels
  was written.
* **G4.** A given-up attempt starts no item later than one look after it was given up; two attempts run an item at the
  same time only when the older one began it before that; an attempt exists only when the one before it is over or
  given up. Children that stood still (a stopped process, a suspended machine) or that cannot reach the job folder are
  excused from the moment that begins: they cannot know. Whatever they write is held to G1 all the same.

The others are checked here, when the job is over:

* **G1.** Each item has exactly one outcome, the four add up to the input, and the report's numbers are those of a
  recount from the folder. A succeeded item was run by the attempt that its record names, and that run wrote it; a
  failed one failed, or killed its process; a not-started one was started by no attempt before that was given up. An
  item whose outcome counts was started by no later attempt.
* **A crash changes nothing that was settled:** outcomes of items in batches that a parent had settled before it died
  are the same at the end. One promise cannot be kept: a parent that decides to stop while the job folder cannot be
  written, and dies before it can, takes that decision with it; the next parent goes on with the job.
* **Nothing runs at the end** but runs of batches that are counted unconfirmed (with the exceptions of G2); and a
  while later no process is left.
* **Taking the job over again** gives the same report, also when `report.json` was lost: same counts, same outcome of
  every item, no child created.
* **It ends** within a time and a number of steps computed from the scenario.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from orchestrator.core.machine import Stage
from orchestrator.core.model import BatchOutcome, ItemOutcome
from orchestrator.core.report import Report
from orchestrator.store import JobFolder
from tests.simulation.world import World

FOUND_SECONDS = 25.0  # within which a run is found by its key

Outcomes = dict[int, tuple[str, int, Any]]  # item -> outcome, attempt, result


def outcomes_of(folder: JobFolder, world: World) -> Outcomes:
    """Every item's outcome, from the folder; an item that has two is told."""
    found: Outcomes = {}
    for record in folder.outcomes():
        if record.index in found:
            world.violate("G1", f"item {record.index} has two outcomes", record.batch)
        found[record.index] = (record.outcome.value, record.attempt or 0, record.result)
    return found


def check_counts(world: World, report: Report, found: Outcomes) -> None:
    """G1: the numbers."""
    total, items = world.scenario.total, report.items
    recount = Counter(outcome for outcome, _, _ in found.values())
    said = {o.value: getattr(items, o.value) for o in ItemOutcome}
    if len(found) != total or items.total != total or sum(said.values()) != total:
        world.violate("G1", f"{total} items were given, {len(found)} have an outcome, the report says {said}")
    elif any(said[name] != recount[name] for name in said):
        world.violate("G1", f"the report says {said}, the folder {dict(recount)}", _differs(world, found))
    batches = report.batches
    if sum(getattr(batches, o.value) for o in BatchOutcome) != batches.total or batches.total != world.scenario.batches:
        world.violate("G1", f"batches do not add up: {batches}")


def _differs(world: World, found: Outcomes) -> int | None:
    """The first batch of which the last parent's machine says something else than the folder."""
    for parent in reversed(world.parents):
        if parent.reactor is None or parent.reactor.report is None:
            continue
        size = world.scenario.batch_size
        for batch in parent.reactor.state.batches:
            items = range(batch.index * size, min((batch.index + 1) * size, world.scenario.total))
            recount = Counter(found[i][0] for i in items if i in found)
            reading = batch.reading
            if reading is None or batch.stage is not Stage.SETTLED:
                continue
            mine = (reading.counts.succeeded, reading.counts.failed, reading.unknown, reading.not_started)
            theirs = tuple(recount[o.value] for o in ItemOutcome)
            if mine != theirs:
                world.tell(batch.index, f"the machine counts {mine}, the folder {theirs}")
                return batch.index
        return None
    return None


def check_truth(world: World, found: Outcomes) -> None:
    """G1: what is said of each item did happen."""
    size, items = world.scenario.batch_size, world.scenario.items
    for index, (outcome, attempt, result) in found.items():
        executions, batch = world.facts.executions.get(index, []), index // size
        if outcome == "succeeded":
            wrote = [e for e in executions if e.attempt == attempt and e.recorded == outcome]
            if not wrote or result != [attempt, wrote[0].begin]:
                world.violate("G1", f"item {index} succeeded in attempt {attempt}, which did not write that", batch)
        elif outcome == "failed":
            wrote = [e for e in executions if e.attempt == attempt and e.recorded == outcome]
            if not wrote and not items[index].kills and not world.scenario.rates.crash:
                world.violate("G1", f"item {index} failed in attempt {attempt}, which did not write that", batch)
        elif outcome == "not_started":
            for e in executions:
                if e.begin < world.facts.revoked.get((e.batch, e.attempt), float("inf")):
                    world.violate("G1", f"item {index} is not started, and attempt {e.attempt} began it", batch)
                    break
        elif not any((batch, k) in world.facts.running for k in range(60)):
            world.violate("G1", f"item {index} is unknown, and no run of its batch ever ran", batch)
        if outcome in ("succeeded", "failed"):
            again = [e.attempt for e in executions if e.attempt > attempt]
            if again:
                world.violate("G1", f"item {index} counts by attempt {attempt}, and was run by {again} again", batch)


def settled_before(world: World, folder: JobFolder) -> Outcomes:
    """What batches that a parent that just ended had settled came to."""
    parent = world.parents[-1]
    if parent.reactor is None or parent.reactor.state.stood_down:
        return {}
    if parent.reactor.state.stop is not None and not world.facts.stops:
        return {}  # it stopped, could not write that down, and died: nobody after it can know
    size = world.scenario.batch_size
    settled = {b.index for b in parent.reactor.state.batches if b.stage is Stage.SETTLED and b.reading is not None}
    if not settled:
        return {}
    return {index: what for index, what in outcomes_of(folder, world).items() if index // size in settled}


def check_settled(world: World, before: Outcomes, found: Outcomes, what: str) -> None:
    """Outcomes that were final are the same now."""
    changed = [i for i, outcome in before.items() if found.get(i) != outcome]
    if changed:
        i = changed[0]
        text = f"{what}: {len(changed)} items changed, the first is {i}: {before[i]} became {found.get(i)}"
        world.violate("resume", text, i // world.scenario.batch_size)


def check_nothing_runs(world: World, report: Report, state: Any) -> None:
    """Every run that never ended belongs to a batch counted unconfirmed."""
    left = [x for x in world.unsettled_runs() if x[0].id not in world.facts.ghosts]
    if state is None:
        unconfirmed = None
    else:
        unconfirmed = {b.index for b in state.batches if b.outcome is BatchOutcome.UNCONFIRMED}
    for run, batch, attempt in left:
        if (unconfirmed is not None and batch not in unconfirmed) or not report.batches.unconfirmed:
            world.violate("left", f"attempt {attempt} is {run.phase} at the end, and not named unconfirmed", batch)


def check_found(world: World, state: Any) -> None:
    """A child run that exists is found, whatever became of the answer to its creation."""
    if state is None or state.stop is None or world.scenario.outages or world.scenario.rates.unavailable > 0.1:
        return
    for batch in state.batches:
        run = world.run_of(batch.index, batch.attempt)
        if batch.outcome is BatchOutcome.UNCONFIRMED and batch.run is None and not batch.unread and run is not None:
            since = world.now() - world.created_when[run]
            if since > FOUND_SECONDS:
                world.violate("left", f"its run exists for {since:.0f} s, and was never found", batch.index)


def check_processes(world: World) -> None:
    """A while after the end."""
    for child in list(world.children.values()):
        world.violate("left", f"the process of attempt {child.attempt} still lives long after the end", child.batch)
