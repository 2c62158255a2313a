"""What one seed makes of a job: everything is drawn here, before anything runs, from the seed alone."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.engine.faults import Rates
from orchestrator.engine.simulated import Latencies
from orchestrator.reactor.boundaries import Boundary

CALM = Rates(**{name: 0.0 for name in Rates.__dataclass_fields__ if name != "fate_seconds"})


@dataclass(frozen=True)
class Death:
    """How a parent process ends before its job does, and what comes after.

    Args:
        how: `step` (before the `at`-th step of its loop), `time` (`at` seconds after it began), `boundary` (the `at`-th
            time it passes `boundary`), `store` (before or after its `at`-th use of the job folder), or `rival`: it does
            not die, but after `at` seconds another parent takes the job over beside it.
        gap: Seconds until the next parent begins.
    """

    how: str
    at: float
    gap: float
    boundary: Boundary | None = None
    after: bool = False

    def __str__(self) -> str:
        place = {
            "step": f"dies before its step {self.at:.0f}",
            "time": f"dies after {self.at:.1f} s",
            "boundary": f"dies at '{self.boundary}' the {self.at:.0f}. time",
            "store": f"dies {'after' if self.after else 'before'} use {self.at:.0f} of the job folder",
            "rival": f"gets a rival after {self.at:.1f} s",
        }[self.how]
        return place if self.how == "rival" else f"{place}, {self.gap:.1f} s before the next"


@dataclass(frozen=True)
class Act:
    """What somebody does to the job from outside, so many seconds after its begin.

    Args:
        what: `stop`, `cancel parent`, `scale`, `pause`, `go on`, `kill switch`, `pause pool`, `open pool`.
        value: Mode of the stop, new window, or expression.
    """

    at: float
    what: str
    value: Any = None

    def __str__(self) -> str:
        return f"{self.what}{'' if self.value is None else f' {self.value}'} at {self.at:.1f} s"


@dataclass(frozen=True)
class Item:
    """What an item does to whoever runs it.

    Args:
        fails: `never`, `always`, `first` (in its first attempt only).
        kills: The process dies with it, `said` (its worker says so) or `unsaid`; "" for a harmless one.
        hangs: In the first attempt it never ends.
    """

    seconds: float
    fails: str = "never"
    kills: str = ""
    hangs: bool = False


@dataclass(frozen=True)
class Scenario:
    """One drawn job. Times in seconds; windows are (begin, end) since the job's begin."""

    seed: int
    batches: int
    batch_size: int
    request: dict[str, Any]
    latencies: Latencies
    capacity: int | None
    rates: Rates
    late_seconds: float
    item_concurrency: int
    items: tuple[Item, ...]
    deployments: int = 1
    outages: tuple[tuple[float, float], ...] = ()
    store_outages: tuple[tuple[float, float], ...] = ()  # of the parents' side
    child_store_outages: tuple[tuple[float, float], ...] = ()
    store_glitches: float = 0.0
    races: float = 0.0  # how often a child writes just while its parent uses its files
    freezes: float = 0.0  # how many children stand still for a while and go on as if nothing had been
    deaths: tuple[Death, ...] = ()
    acts: tuple[Act, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    budget: int | None = None  # the parents' own, of requests per minute; not drawn
    most_requests: int | None = None  # per minute, the others are turned away; not drawn

    @property
    def total(self) -> int:
        return len(self.items)

    def with_less(self, **changes: Any) -> Scenario:
        """The same with something left out, to find out what a violation needs."""
        return replace(self, **changes)

    def __str__(self) -> str:
        r = self.request
        parts = [
            f"{self.batches} batches of {self.batch_size} ({self.total} items), at most {r['max_in_flight']} in flight",
            f"{r['batch_retries']} retries",
            f"kill switch {r.get('kill_switch')!r}",
        ]
        for name in ("enough_when", "on_trip", "start_timeout_seconds", "batch_timeout_seconds", "group_by"):
            if r.get(name) is not None:
                parts.append(f"{name}={r[name]}")
        if not r.get("isolate_crashing_items", True):
            parts.append("no isolation")
        parts.append(f"latencies {self.latencies.request:g}/{self.latencies.pickup:g}/{self.latencies.start:g}")
        if self.capacity is not None:
            parts.append(f"a pool of {self.capacity}")
        if self.item_concurrency > 1:
            parts.append(f"{self.item_concurrency} items at once")
        rates = [
            f"{n} {v:.2f}" for n in Rates.__dataclass_fields__ if (v := getattr(self.rates, n)) and n != "fate_seconds"
        ]
        parts.append("faults: " + (", ".join(rates) or "none"))
        for name in ("outages", "store_outages", "child_store_outages"):
            if windows := getattr(self, name):
                parts.append(f"{name.replace('_', ' ')} " + ", ".join(f"{a:.0f}-{b:.0f}" for a, b in windows))
        for name in ("store_glitches", "races", "freezes"):
            if value := getattr(self, name):
                parts.append(f"{name.replace('_', ' ')} {value:.2f}")
        for name in ("budget", "most_requests"):
            if value := getattr(self, name):
                parts.append(f"{name.replace('_', ' ')} {value} a minute")
        odd = {n: sum(bool(getattr(i, n)) if n != "fails" else i.fails != "never" for i in self.items)
               for n in ("fails", "kills", "hangs")}  # fmt: skip
        parts += [f"{n} items that {what}" for what, n in zip(("fail", "kill", "hang"), odd.values(), strict=True) if n]
        parts += [f"parent {n + 1} {death}" for n, death in enumerate(self.deaths)]
        parts += [str(act) for act in self.acts]
        return f"seed {self.seed}: " + "; ".join(parts) + "."


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    chance = random.Random(f"scenario/{seed}")
    batches = _batches(chance)
    batch_size = chance.choice((1, 2, 3, 5, 8)) if batches > 100 else chance.choice((1, 2, 3, 5, 8, 13, 20))
    if batches > 500:
        batch_size = chance.choice((1, 2))
    window = chance.choice((1, 2, 3, 4, 8, 16, 32)) if batches <= 60 else chance.choice((8, 16, 32, 64))
    mean = chance.choice((0.02, 0.2, 0.5, 1.0, 3.0)) if batches <= 100 else chance.choice((0.02, 0.2, 1.0))
    total = max(1, batches * batch_size - chance.randrange(batch_size))
    grim = chance.random()  # how bad this world is: a quarter of them is calm
    harm = 0.0 if grim < 0.15 else chance.choice((0.3, 1.0, 1.0, 2.5))
    about = max(10.0, total * mean / window + batches / window * 3.0)  # roughly the seconds it takes
    request = _request(chance, batches, batch_size, total, window)
    return Scenario(
        seed=seed,
        batches=-(-total // batch_size),
        batch_size=batch_size,
        request=request,
        latencies=_latencies(chance),
        capacity=chance.choice((None, None, None, max(1, window // 2), window + 1)),
        rates=_rates(chance, harm, about / max(1, batches / window)),
        late_seconds=chance.choice((3.0, 7.0, 20.0)),
        item_concurrency=chance.choice((1, 1, 3)),
        items=_items(chance, total, mean, harm),
        deployments=chance.choice((1, 1, 2)),
        outages=_windows(chance, about, 0.35 * min(harm, 1), (2, 20, 120, 300)),
        store_outages=_windows(chance, about, 0.25 * min(harm, 1), (2, 20, 120)),
        child_store_outages=_windows(chance, about, 0.08 * min(harm, 1), (2, 20, 90)),
        store_glitches=chance.choice((0.0, 0.0, 0.01, 0.05)) if harm else 0.0,
        races=chance.choice((0.0, 0.1, 0.5)) if harm else 0.0,
        freezes=chance.choice((0.0, 0.0, 0.05)) if harm else 0.0,
        deaths=_deaths(chance, about),
        acts=_acts(chance, about, window),
        settings={
            "fence_seconds": 2.0,
            "max_waits": chance.choice((0, 5, 50)),
            "submit_concurrency": chance.choice((1, 1, 1, 4)),
            "poll_seconds": chance.choice((1.0, 3.0)),
        },
    )


def _batches(chance: random.Random) -> int:
    kind = chance.random()
    if kind < 0.93:
        return 1 + round(5 + 55 * chance.random() ** 2)
    if kind < 0.99:
        return chance.randrange(100, 220)
    return chance.randrange(600, 1001)


def _request(chance: random.Random, batches: int, batch_size: int, total: int, window: int) -> dict[str, Any]:
    stalled = chance.choice((120, 400, 600))
    switches = [
        f"stalled > {stalled}",
        f"stalled > {stalled}",
        f"stalled > {stalled}",
        f"failed >= {chance.randrange(1, max(2, total // 3 + 2))} or stalled > {stalled}",
        f"failed_rate > 0.4 and settled >= {max(5, total // 4)} or stalled > {stalled}",
        f"crashed_batches >= {chance.randrange(1, 4)} or stalled > {stalled}",
        f"consecutive_failed >= 5 or crashed_attempts >= {chance.randrange(3, 12)} or stalled > {stalled}",
        f"recent_failed_rate(20) > 0.5 or stalled > {stalled}",
    ]
    enough = f"succeeded >= {chance.randrange(1, total + 1)}"
    return {
        "batch_size": batch_size,
        "max_in_flight": window,
        "batch_retries": chance.choice((0, 1, 2, 2, 3)),
        "kill_switch": chance.choice(switches),
        "on_trip": chance.choice(("cancel", "cancel", "drain")),
        "enough_when": enough if chance.random() < 0.1 else None,
        "start_timeout_seconds": chance.choice((15, 60, 600)),
        "batch_timeout_seconds": chance.choice((None, None, 60, 200)),
        "isolate_crashing_items": chance.random() < 0.8,
        "on_parent_cancelled": chance.choice(("cancel", "cancel", "abandon")),
        "fail_if": None,
    }


def _latencies(chance: random.Random) -> Latencies:
    return Latencies(
        request=chance.choice((0.001, 0.01, 0.05, 0.3)),
        pickup=chance.choice((0.1, 0.5, 5.0)),
        start=chance.choice((0.5, 1.5, 6.0)),
        news=chance.choice((0.05, 0.3, 1.0)),
        cancel=chance.choice((0.5, 3.3)),
        kill_grace=30.0,
        cancelling_timeout=300.0,
    )


def _rates(chance: random.Random, harm: float, batch_seconds: float) -> Rates:
    if not harm:
        return CALM
    usual, rates = Rates(pause=0.004), {}
    for name in Rates.__dataclass_fields__:
        # Of each kind nothing, the usual, or much: so that kinds meet in pairs, and not all at once in every seed.
        value = getattr(usual, name)
        rates[name] = min(0.5, value * harm * chance.choice((0.0, 0.5, 1.0, 3.0)))
    rates["fate_seconds"] = max(3.0, 1.5 * batch_seconds * chance.random())
    return Rates(**rates)


def _items(chance: random.Random, total: int, mean: float, harm: float) -> tuple[Item, ...]:
    fails = chance.choice((0.0, 0.0, 0.02, 0.1, 0.5))
    kills = chance.choice((0.0, 0.0, 0.0, 0.01, 0.05)) * min(harm, 1)
    hangs = chance.choice((0.0, 0.0, 0.0, 0.0, 0.01)) * min(harm, 1)
    slow = chance.choice((0.0, 0.0, 0.02))
    items = []
    for _ in range(total):
        seconds = mean * chance.uniform(0.5, 1.5) * (20 if chance.random() < slow else 1)
        kind = chance.random()
        items.append(
            Item(
                round(seconds, 4),
                fails="never" if kind > fails else "first" if kind < fails / 4 else "always",
                kills="" if chance.random() >= kills else chance.choice(("said", "said", "unsaid")),
                hangs=chance.random() < hangs,
            )
        )
    return tuple(items)


def _windows(
    chance: random.Random, about: float, likely: float, lengths: tuple[float, ...]
) -> tuple[tuple[float, float], ...]:
    found = []
    for _ in range(4):
        if chance.random() < likely:
            begin = chance.random() * about * 1.2
            found.append((begin, begin + chance.choice(lengths) * chance.uniform(0.2, 1.0)))
    return tuple(sorted(found))


def _deaths(chance: random.Random, about: float) -> tuple[Death, ...]:
    count = chance.choice((0, 0, 1, 1, 1, 2, 3, 4))
    deaths = []
    for _ in range(count):
        how = chance.choice(("step", "step", "time", "boundary", "boundary", "store", "rival"))
        gap = chance.choice((0.05, 0.5, 3.0, 20.0, 90.0)) * chance.uniform(0.5, 1.5)
        boundary, at = None, chance.random() * about * 1.2
        if how == "step":
            at = float(round(10 ** chance.uniform(0.7, 3.8)))
        elif how == "boundary":
            boundary = chance.choice(list(Boundary))
            at = float(chance.choice((1, 1, 1, 2, 5, 20)))
        elif how == "store":
            at = float(round(10 ** chance.uniform(0.0, 2.6)))
        deaths.append(Death(how, at, gap, boundary, after=chance.random() < 0.5))
    return tuple(deaths)


def _acts(chance: random.Random, about: float, window: int) -> tuple[Act, ...]:
    acts: list[Act] = []
    for _ in range(chance.choice((0, 0, 0, 1, 2, 3))):
        at = chance.random() * about * 1.1
        what = chance.choice(("stop", "stop", "scale", "scale", "pause", "kill switch", "cancel parent", "pause pool"))
        if what == "stop":
            acts.append(Act(at, "stop", chance.choice(("cancel", "drain"))))
        elif what == "scale":
            acts.append(Act(at, "scale", chance.randrange(1, 2 * window + 2)))
        elif what == "pause":
            acts += [Act(at, "pause"), Act(at + chance.choice((3, 30, 200)), "go on")]
        elif what == "kill switch":
            acts.append(Act(at, "kill switch", f"failed >= {chance.randrange(1, 20)} or stalled > 300"))
        elif what == "pause pool":
            acts += [Act(at, "pause pool"), Act(at + chance.choice((3, 30, 100)), "open pool")]
        else:
            acts.append(Act(at, "cancel parent"))
    return tuple(sorted(acts, key=lambda act: act.at))
