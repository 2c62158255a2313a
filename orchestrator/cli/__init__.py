"""The command line: `orchestrator <command>`.

Law of this folder: the result goes to stdout, everything else to stderr; errors of ours become one line with the remedy
and an exit code (0 well, 1 the job failed or tripped, 2 wrong request, 3 Prefect or storage away, 4 cancelled).
Modules are light to import; Prefect is imported inside the commands that need it.
"""

from orchestrator.cli.app import main

__all__ = ["main"]
