"""The program: its commands, and what becomes of errors."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import cyclopts
from pydantic import ValidationError

from orchestrator.cli import cleaning, controls, demo, installing, looking, replaying, running, stacks
from orchestrator.cli.terminal import INTERRUPTED, error_line, masked, plain, say
from orchestrator.errors import OrchestratorError
from orchestrator.settings import Settings, settings_error


def make_app() -> cyclopts.App:
    """The command line, in the order in which `--help` lists it."""
    app = cyclopts.App(
        name="orchestrator",
        help="Fan a collection of items out over a Prefect deployment, in batches, with a kill switch.",
        help_on_error=False,
        version=_version,
    )
    everyday, operator = cyclopts.Group("Jobs", sort_key=1), cyclopts.Group("Set-up", sort_key=2)
    jobs: tuple[Callable[..., int], ...] = (
        running.plan, running.run, looking.status, looking.stop, running.resume, controls.retry, looking.report,
        looking.results,
    )  # fmt: skip
    set_up: tuple[Callable[..., int], ...] = (
        installing.deploy, installing.doctor, stacks.up, demo.demo, controls.scale, controls.pause, cleaning.cleanup,
        replaying.replay,
    )  # fmt: skip
    for command in jobs:
        app.command(command, group=everyday)
    for command in set_up:
        app.command(command, group=operator)
    return app


def _version() -> str:
    from importlib.metadata import version

    return version("prefect-batch-orchestrator")


def run(arguments: Sequence[str] | None = None) -> int:
    """Carry one command line out; its exit code."""
    try:
        code = make_app()(
            arguments, exit_on_error=False, print_error=False, help_on_error=False, result_action="return_value"
        )
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except cyclopts.CycloptsError as e:
        say(f"error: {plain(masked(' '.join(str(e).split())))[:500].rstrip('.')}; see --help")
        return 2
    except OrchestratorError as e:
        say(error_line(e))
        return e.exit_code
    except ValidationError as e:
        if e.title != Settings.__name__:
            raise
        say(error_line(settings_error(e)))
        return 2
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has seen enough (`| head`); the interpreter must not complain while flushing at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as e:
        if os.environ.get("ORCHESTRATOR_DEBUG"):
            raise
        say(error_line(e))
        return 1


def main() -> NoReturn:
    """Entry point of the `orchestrator` program and of `python -m orchestrator`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an item's key may hold what no terminal can show
    sys.exit(run())
