"""`python -m tests.simulation --seeds 1000 --processes 2`: play seeded jobs, print a table, exit 1 on a violation."""

from __future__ import annotations

import argparse
import logging
import sys
import time

from tests.simulation.campaign import Sums, keep, play_seeds, story_of


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--story", action="store_true", help="with --seed: print its story")
    parser.add_argument("--lines", type=int, default=250, help="of a story")
    parser.add_argument("--keep", action="store_true", help="write seeds that fail into kept.txt")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if asked.seed is not None and asked.story:
        print(story_of(asked.seed, asked.lines))
    seeds = [asked.seed] if asked.seed is not None else range(asked.first, asked.first + asked.seeds)
    sums, began, told = Sums(), time.monotonic(), 0.0
    for result in play_seeds(seeds, asked.processes if len(seeds) > 1 else 1):
        sums.add(result)
        if result.violations:
            rule, text = result.violations[0]
            print(f"seed {result.seed}: {rule}: {text}", flush=True)
            if asked.keep:
                keep(result.seed, f"{rule}: {text}")
        if time.monotonic() - told > 10:
            told = time.monotonic()
            print(f"{sums.seeds} of {len(seeds)} seeds, {sums.violations} violations", file=sys.stderr, flush=True)
    print(sums.table(time.monotonic() - began))
    for seed in sorted(sums.failing)[:3]:
        print(f"\n== the story of seed {seed}\n{story_of(seed, asked.lines)}")
    return 1 if sums.violations else 0


if __name__ == "__main__":
    sys.exit(main())
