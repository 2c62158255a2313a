"""The short form of the campaign: some seeds, those that found something once, and every kind of fault among them."""

from __future__ import annotations

import gc
import random
import threading

import pytest

from tests.simulation.campaign import Sums, kept, play_seed, play_seeds, story_of
from tests.simulation.play import play
from tests.simulation.scenario import draw

SEEDS = range(80)

FAULTS = {
    "call in an outage", "call refused", "child stood still", "child wrote while its parent read", "creation busy",
    "creation late", "creation lost answer", "creation lost request", "item hung", "item killed its process (said)",
    "item killed its process (unsaid)", "news late", "news lost", "news repeated", "news swapped", "parent cancelled",
    "parent died (boundary)", "parent died (step)", "parent died (store)", "parent died (time)", "parent got a rival",
    "paused run goes on", "person: go on", "person: kill switch", "person: open pool", "person: pause",
    "person: pause pool", "person: scale", "person: stop", "reading slow", "run cancelled by hand", "run crashed",
    "run deaf to its cancel", "run deleted", "run paused", "run resurrected", "run said to have crashed",
    "run stuck pending", "run vanished", "silent run given up", "storage away from a child",
    "storage away from the parent", "storage: answer lost", "storage: request lost", "wait early", "wait never",
    "wait not final", "wait raises",
}  # fmt: skip


@pytest.mark.timeout(900)  # half a minute of work for two cores
def test_jobs_drawn_from_seeds_keep_every_promise_while_everything_goes_wrong():
    sums = Sums()
    for result in play_seeds(sorted({*SEEDS, *kept()}), processes=2):
        sums.add(result)
    stories = "\n\n".join(story_of(seed, most=80) for seed in sorted(sums.failing)[:2])
    assert not sums.failing, f"{sums.table(0)}\n{stories}"
    never = FAULTS - sums.injected.keys()
    assert not never, f"never happened: {sorted(never)}"
    assert {"completed", "tripped", "cancelled", "enough"} <= sums.verdicts.keys()


@pytest.mark.parametrize("limit", [{"budget": 20}, {"budget": 90}, {"most_requests": 40}], ids=str)
def test_jobs_keep_every_promise_with_few_requests_too(limit):
    for seed in (1, 4, 8, 17, 23, 42):
        scenario = draw(seed).with_less(**limit)
        played = play(scenario)
        assert not played.violations, f"{scenario}: {played.violations[0]}"


@pytest.mark.parametrize("seed", [3, 19, 46])
def test_a_seed_tells_the_same_story_twice(seed):
    gc.collect()  # the S3 clients of earlier tests close their sessions on whatever loop runs when they are collected
    first = play(draw(seed), story=True)
    over = threading.Event()

    def draws() -> None:
        while not over.wait(0.001):
            random.random()

    other = threading.Thread(target=draws)
    other.start()  # what other threads of this process draw is no part of a story
    try:
        again = play(draw(seed), story=True)
    finally:
        over.set()
        other.join()
    assert first.steps == again.steps
    assert [line[:3] for line in first.lines or ()] == [line[:3] for line in again.lines or ()]


def test_the_story_names_the_scenario_and_what_happened_to_the_job():
    text = story_of(44)
    assert text.startswith("seed 44: 13 batches of 2 (26 items), at most 4 in flight")
    assert "the job is over" in text
    assert play_seed(44).verdict == "completed"
