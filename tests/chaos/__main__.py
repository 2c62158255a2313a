"""`python -m tests.chaos`: a seeded campaign of faults on a stack of its own, and the judgement of what came of it."""

from __future__ import annotations

import argparse
import atexit
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="of every choice; by default a new one, printed")
    parser.add_argument("--minutes", type=float, default=12, help="how long faults are dealt (default 12)")
    parser.add_argument("--only", default=None, help="kinds of faults, separated by commas")
    parser.add_argument("--list", action="store_true", help="print the kinds of faults, and end")
    parser.add_argument("--keep", action="store_true", help="keep the stack's folder in any case")
    options = parser.parse_args()
    _forget_the_users_prefect()
    from tests.chaos.campaign import Campaign, Plan
    from tests.chaos.faults import FAULTS
    from tests.chaos.telling import story, summary, table

    if options.list:
        for fault in FAULTS.values():
            print(f"{fault.kind:26} {fault.what}")
        return 0
    usual = [kind for kind, fault in FAULTS.items() if not fault.long or options.minutes >= 8]
    kinds = options.only.split(",") if options.only else usual
    if unknown := [k for k in kinds if k not in FAULTS]:
        parser.error(f"unknown faults {', '.join(unknown)}; --list prints them")
    seed = options.seed if options.seed is not None else int(time.time()) % 1_000_000
    home = Path(tempfile.mkdtemp(prefix="orchestrator-chaos-"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the small disk is unmounted on the way out
    print(f"seed {seed}, {options.minutes:g} minutes of faults, in {home}", flush=True)
    judgement = Campaign(Plan(seed, options.minutes * 60, kinds), home).run()
    print(f"\n{table(judgement)}\n\n{summary(judgement)}")
    if judgement.violations:
        print(f"\n{story(judgement)}")
        return 1
    print("No violation.")
    if options.keep:
        print(f"Everything is kept in {home}")
    else:
        shutil.rmtree(home, ignore_errors=True)
    return 0


def _forget_the_users_prefect() -> None:
    """Before Prefect is imported: it reads its settings once."""
    for name in [n for n in os.environ if n.startswith(("PREFECT_", "ORCHESTRATOR_"))]:
        del os.environ[name]
    home = tempfile.mkdtemp(prefix="orchestrator-chaos-home-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ.update(PREFECT_HOME=home, PREFECT_PROFILES_PATH=f"{home}/profiles.toml", DO_NOT_TRACK="1")


if __name__ == "__main__":
    sys.exit(main())
