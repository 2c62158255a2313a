"""The base job template of the stack's process work pools."""

from __future__ import annotations

from typing import Any

# What a process work pool's template says of its jobs. Source: prefect workers/process.py
# (ProcessWorker.get_default_base_job_template), 3.8.8; a test compares the two.
_PROCESS_JOB = ("command", "env", "labels", "name", "stream_output", "working_dir")


def process_template(command: str | None) -> dict[str, Any]:
    """Base job template of a process work pool whose runs start with `command` unless a deployment says otherwise.

    With a command of its own a run costs one interpreter start instead of two (1.0 to 1.6 s less on two cores); in
    exchange the worker itself, not a fresh process, loads a flow's `on_cancellation` and `on_crashed` hooks.
    Source: prefect workers/process.py, runner/_workspace_starter.py, 3.8.8.
    """
    text = {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}
    mapping = {"type": "object", "additionalProperties": {"type": "string"}}
    properties: dict[str, Any] = {
        "name": text | {"title": "Name", "description": "Name given to infrastructure created by a worker."},
        "env": mapping
        | {
            "title": "Environment Variables",
            "additionalProperties": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "description": "Environment variables to set when starting a flow run.",
        },
        "labels": mapping | {"title": "Labels", "description": "Labels applied to infrastructure created by a worker."},
        "command": text
        | {"title": "Command", "default": command, "description": "The command to use when starting a flow run."},
        "stream_output": {
            "type": "boolean",
            "title": "Stream Output",
            "default": True,
            "description": "If enabled, workers will stream output from flow run processes to local standard output.",
        },
        "working_dir": {
            "anyOf": [{"format": "path", "type": "string"}, {"type": "null"}],
            "title": "Working Directory",
            "default": None,
            "description": "Folder in which flow run processes start; by default a temporary one.",
        },
    }
    return {
        "job_configuration": {name: f"{{{{ {name} }}}}" for name in _PROCESS_JOB},
        "variables": {"type": "object", "properties": properties},
    }
