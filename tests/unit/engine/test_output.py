"""A flow run's process whose worker was killed: nobody reads its output, and that must end nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

BEGIN = """
import logging, os, sys
from prefect.logging.configuration import setup_logging
from prefect.logging import get_logger
from orchestrator.engine.output import drop_broken_outputs, outlive_readers
setup_logging()
log = get_logger("orchestrator")
print("ready", flush=True)
sys.stdin.readline()  # until the reader is gone
"""


def exit_code(work: str, *, started_by_worker: bool = True) -> int:
    """How a process ends that does this once the reader of its output, its parent, is gone."""
    environment = {**os.environ, "PREFECT_LOGGING_TO_API_ENABLED": "false"}
    environment.pop("PREFECT__FLOW_RUN_ID", None)
    if started_by_worker:
        environment["PREFECT__FLOW_RUN_ID"] = "3f0c2b1e-0000-4000-8000-00000000000a"
    # Both outputs into one pipe, as a worker reads them.
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(BEGIN) + textwrap.dedent(work)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert b"ready" in process.stdout.readline()
        process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        return process.wait(60)
    finally:
        process.kill()
        process.wait()


LOG = """
log.warning("a line that nobody reads")
log.warning("and another")
os._exit(7)
"""


def test_a_line_in_the_log_of_a_run_without_a_worker_ends_it_unless_we_look_after_it():
    assert exit_code(LOG) == 1, "Prefect's console does not end the process any more: this module may go"
    assert exit_code("outlive_readers()\n" + LOG) == 7


def test_outputs_without_a_reader_go_nowhere_and_printing_raises_nothing():
    work = 'drop_broken_outputs()\nfor _ in range(3): print("x" * 100_000, flush=True)\nos._exit(7)'
    assert exit_code(work) == 7
    assert exit_code('print("x", flush=True)') != 0


@pytest.mark.parametrize("call", ["outlive_readers()", "drop_broken_outputs()"])
def test_the_output_of_a_persons_own_program_is_left_as_it_is(call):
    assert exit_code(f"{call}\n{LOG}", started_by_worker=False) == 1
