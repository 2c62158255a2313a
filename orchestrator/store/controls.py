"""What people tell a job while it runs, left in its folder: another window, a pause, another kill switch, a stop.

It holds also while the parent is away: whoever is the parent next reads it before it starts anything.
"""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.core.killswitch import parse
from orchestrator.core.machine.controls import Standing, read_control
from orchestrator.core.model import StopCause, StopMode, StopRecord
from orchestrator.errors import ConfigurationError
from orchestrator.store.folder import JobFolder

NONE = "none"  # how the absence of a kill switch is written


@dataclass(frozen=True, slots=True)
class Told:
    """What a job was told.

    Args:
        number: Of the control that was written; None when the job had been told so before.
        said: What was done, one line.
    """

    number: int | None
    said: str
    standing: Standing


def standing(folder: JobFolder) -> Standing:
    """What holds for a job after all that it was told."""
    spec = folder.read_job().spec.get("job") or {}
    window, switch = spec.get("max_in_flight"), spec.get("kill_switch")
    now = Standing(window if type(window) is int else 1, parse(switch) if isinstance(switch, str) else None)
    for _, control in folder.read_controls():
        now.apply(read_control(control)[0])
    return now


def change(
    folder: JobFolder,
    *,
    max_in_flight: int | None = None,
    kill_switch: str | None = None,
    paused: bool | None = None,
    who: str,
    reason: str = "",
) -> Told:
    """Tell a job how to go on.

    Args:
        max_in_flight: 1..1000; None to leave it.
        kill_switch: An expression; `none` for none; None to leave it.
        who: For people.

    Raises:
        ConfigurationError: a value is wrong, nothing was asked for, or the job is over or being stopped.
        ExpressionError: the kill switch does not parse.
    """
    wish: dict[str, Any] = {}
    if max_in_flight is not None:
        if not 1 <= max_in_flight <= 1000:
            raise ConfigurationError(f"must be 1 to 1000, got {max_in_flight}", field="max_in_flight")
        wish["max_in_flight"] = max_in_flight
    if kill_switch is not None:
        none = kill_switch.strip().lower() == NONE
        wish["kill_switch"] = None if none else str(parse(kill_switch, field="kill_switch"))
    if paused is not None:
        wish["paused"] = paused
    if not wish:
        raise ConfigurationError("say what to change: --max-in-flight, --kill-switch, or both")
    check_goes_on(folder)
    now = standing(folder)
    asked = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    control = {**wish, "who": who, "asked": asked, "reason": reason}
    said = now.apply(read_control(control)[0])
    if not said:
        return Told(None, f"{_told_before(wish, now)}; nothing to change", now)
    return Told(folder.write_control(control), "; ".join(said), now)


def _told_before(wish: dict[str, Any], now: Standing) -> str:
    parts = []
    if "max_in_flight" in wish:
        parts.append(f"max_in_flight is {now.window:,} already")
    if "kill_switch" in wish:
        parts.append(f"the kill switch is {now.kill_switch or NONE} already")
    if "paused" in wish:
        parts.append(f"it is paused already, {now.paused_by}" if now.paused else "it is not paused")
    return "; ".join(parts)


def check_goes_on(folder: JobFolder) -> None:
    """Nothing, while what a job is told can change anything.

    Raises:
        ConfigurationError: it is over, or being stopped.
    """
    job_id = folder.read_job().job_id
    if (data := folder.read_report()) is not None:
        raise ConfigurationError(f"job {job_id!r} is over ({data.get('verdict')}); there is nothing to change")
    if (stop := folder.read_stop()) is not None:
        raise ConfigurationError(
            f"job {job_id!r} is being stopped ({stop.reason}; {stop.who}); there is nothing to change"
        )


def ask_to_stop(folder: JobFolder, mode: Literal["cancel", "drain"], who: str, reason: str = "") -> StopRecord:
    """Stop a job; gives the stop in force then, which is an earlier one that was as strong.

    Raises:
        ConfigurationError: it is over.
    """
    if (data := folder.read_report()) is not None:
        job_id = folder.read_job().job_id
        raise ConfigurationError(f"job {job_id!r} is over ({data.get('verdict')}); there is nothing to stop")
    line = " ".join(reason.split())
    return folder.request_stop(StopRecord(StopMode(mode), StopCause.REQUESTED, line or f"stopped by {who}", who))


def parent_is_alive(folder: JobFolder, beat_seconds: float) -> bool:
    """Whether the parent's sign of life changes within two of its intervals; waits for that long."""
    first = folder.read_lease()
    end = time.monotonic() + 2 * beat_seconds + 1
    while time.monotonic() < end:
        if folder.read_lease() != first or folder.read_report() is not None:
            return True
        time.sleep(0.25)
    return False
