"""`cleanup`: what died jobs left behind and what is old, listed, and cleaned up when that is asked for."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

from orchestrator.cli.jobs import storage_root
from orchestrator.cli.options import OUTPUT, STOP, Json, Storage, flag
from orchestrator.cli.terminal import give, give_json, plain, say, table
from orchestrator.errors import ConfigurationError
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from orchestrator.flows.survey import Survey


def cleanup(
    *,
    dry_run: Annotated[
        bool,
        flag(
            "--dry-run", "List what would be done, and do nothing.", group=OUTPUT, env="ORCHESTRATOR_CLEANUP_DRY_RUN"
        ),
    ] = False,
    yes: Annotated[bool, flag("--yes", "Act without asking.", group=OUTPUT, env="ORCHESTRATOR_CLEANUP_YES")] = False,
    older_than: Annotated[
        str,
        flag(
            "--older-than", "Remove the folders of jobs that are over for longer: 12h, 30d, 8w, or `never`.",
            group=STOP, env="ORCHESTRATOR_CLEANUP_OLDER_THAN",
        ),
    ] = "30d",
    settle_after: Annotated[
        str,
        flag(
            "--settle-after",
            "End a job so long after its parent was over. Until then `resume` goes on with it, afterwards `retry` runs "
            "what it left.",
            group=STOP, env="ORCHESTRATOR_CLEANUP_SETTLE_AFTER",
        ),
    ] = "1h",
    storage: Storage = None,
    json: Json = False,
) -> int:  # fmt: skip
    """End jobs whose parent died, cancel child runs that they left, remove old job folders; lists first, then asks."""
    from orchestrator.flows.cleanup import clean_up, look_around, pace_of, read_rules, summary, to_json

    if dry_run and yes:
        raise ConfigurationError("--dry-run and --yes exclude each other", field="yes")
    settings = Settings()
    rules = read_rules(older_than, settle_after, settings, allow_all=yes or dry_run)
    pace = pace_of(settings)
    found = asyncio.run(look_around(storage_root(storage), rules, settings, pace))
    if not json:
        _show(found)
    act = bool(found.to_do) and not dry_run and (yes or (not json and _confirmed(found.to_do)))
    done = asyncio.run(clean_up(found, settings, pace)) if act else None
    if json:
        give_json(to_json(found, done))
    elif done is not None:
        for line in done:
            give(plain(f"{line.finding.subject}: {line.said}"))
        say(summary(found, done))
    if found.away is not None:
        say(f"error: {found.away}")
        say("Prefect could not be asked: only old folders were looked at")
        return 3
    return 0 if done is None or all(line.ok for line in done) else 1


def _show(found: Survey) -> None:
    from orchestrator.flows.cleanup import cells, summary

    if found.findings:
        rows = [tuple(plain(text) for text in cells(finding)) for finding in found.findings]
        give(table(rows, ("do", "what", "why", "age", "size")))
    say(f"{summary(found)}, in {found.root}")


def _confirmed(count: int) -> bool:
    """Whether a person at a terminal says yes; without one nothing is done."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        say("nothing was done; --yes acts")
        return False
    sys.stdout.flush()
    say("do this? [y/N]" if count == 1 else f"do these {count:,} things? [y/N]")
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    say("nothing was done")
    return False
