"""Many seeds in several processes, and what came of them as a table.

How soon a broken product is noticed: each was broken alone, and seeds were played from 1000 on until one failed (the
last one: from 0 on).

| broken | seeds until noticed | rule |
|---|---:|---|
| a creation of unknown outcome holds no place of the window | 1 | G2 |
| a run that is being cancelled holds no place | 1 | G2 |
| Cancelling is read as over | 1 | G2 |
| a lost attempt is not given up before the next exists | 1 | G4 |
| a new attempt does not take over what earlier ones finished | 1 | G1 |
| unknown items are counted as not started | 5 | G1 |
| a parent adopts by the key of the attempt that is over | 11 | resume |
| an older parent does not see that it was superseded | 16 | G1 |
| the cancel deadline never passes | 20 | time |
| a lost answer is taken for nothing created | 33 | G1 |
| a creation of unknown outcome is never asked for again | 36 | left |
| creations go on after the stop (nothing asks before sending) | 55 | G3 |
| the stop is not written | 72 | time |
| records of a given-up attempt count, however late | 82 | G1 |
| a task of the parent loses its cancel (`asyncio.wait_for`, Python 3.11) | 807 | time |
"""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

KEPT = Path(__file__).with_name("kept.txt")


@dataclass
class Sums:
    """What all seeds together were."""

    seeds: int = 0
    batches: int = 0
    items: int = 0
    runs: int = 0
    parents: int = 0
    virtual_seconds: float = 0.0
    violations: int = 0
    injected: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    failing: list[int] = field(default_factory=list)

    def add(self, result: Result) -> None:
        self.seeds += 1
        self.batches += result.batches
        self.items += result.items
        self.runs += result.runs
        self.parents += result.parents
        self.virtual_seconds += result.seconds
        self.injected.update(result.injected)
        self.verdicts[result.verdict or "none"] += 1
        self.violations += len(result.violations)
        self.rules.update(rule for rule, _ in result.violations)
        if result.violations:
            self.failing.append(result.seed)

    def table(self, wall_seconds: float) -> str:
        """For people."""
        verdicts = ", ".join(f"{n:,} {verdict}" for verdict, n in self.verdicts.most_common())
        rows = [
            ("seeds", f"{self.seeds:,}: {verdicts}"),
            ("batches, items", f"{self.batches:,}, {self.items:,}"),
            ("child runs created", f"{self.runs:,}"),
            ("parent processes", f"{self.parents:,}"),
            ("virtual time", f"{self.virtual_seconds / 3600:,.0f} h"),
            ("wall time", f"{wall_seconds:,.0f} s"),
        ]
        lines = ["| simulated jobs | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
        lines += ["", "| fault injected | times |", "|---|---:|"]
        lines += [f"| {kind} | {n:,} |" for kind, n in sorted(self.injected.items())]
        rules = ", ".join(f"{rule} {n}" for rule, n in sorted(self.rules.items()))
        seeds = ", ".join(map(str, sorted(self.failing)[:30]))
        lines += ["", f"violations: {self.violations}" + (f" ({rules}) in seeds {seeds}" if self.violations else "")]
        return "\n".join(lines)


@dataclass(frozen=True)
class Result:
    """What became of one seed, small enough to be sent between processes."""

    seed: int
    batches: int
    items: int
    runs: int
    parents: int
    seconds: float
    steps: int
    cpu_seconds: float
    verdict: str | None
    injected: dict[str, int]
    violations: tuple[tuple[str, str], ...]


def play_seed(seed: int) -> Result:
    """Draw and play one seed."""
    from tests.simulation.play import play
    from tests.simulation.scenario import draw

    began = time.process_time()
    scenario = draw(seed)
    played = play(scenario)
    return Result(
        seed, scenario.batches, scenario.total, played.runs, played.parents, played.seconds, played.steps,
        time.process_time() - began, played.verdict, dict(played.injected),
        tuple((v.rule, v.text) for v in played.violations),
    )  # fmt: skip


def play_seeds(seeds: Sequence[int], processes: int) -> Iterator[Result]:
    """The results, in whatever order they come."""
    if processes <= 1:
        yield from map(play_seed, seeds)
        return
    # Fresh ones, not forked: a fork of a test process carries its threads' locks along.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(play_seed, seeds, chunksize=4)


def story_of(seed: int, most: int = 250) -> str:
    """The story of a seed, played again."""
    from tests.simulation.play import play
    from tests.simulation.scenario import draw
    from tests.simulation.story import tell

    return "\n".join(tell(play(draw(seed), story=True), most=most))


def kept() -> list[int]:
    """Seeds that found something once."""
    lines = KEPT.read_text().splitlines() if KEPT.exists() else []
    return [int(line.split()[0]) for line in lines if line.strip() and not line.startswith("#")]


def keep(seed: int, why: str) -> None:
    """From now on the short form plays that seed too."""
    if seed not in kept():
        with KEPT.open("a") as file:
            file.write(f"{seed} {why}\n")
