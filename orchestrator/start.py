"""How a child run starts: `python -m orchestrator.start`, given as the job's `command`.

In a process pool the worker stays beside the process and ends it when the run is cancelled. A container has nobody
beside it: there `python -m orchestrator.start --supervised` does what `prefect flow-run execute`, Prefect's own command
there, does: it runs the engine in a process of its own, ends it when the run is cancelled, and tells of its death.

It looks at its own run before it loads anything. Prefect leaves a gap: a run that is cancelled while it is Pending is
finalised by nobody, because its process comes up, is refused, and ends without a word; only the server's own timeout
(300 s) makes it Cancelled. Here the process finalises itself, from Cancelling, which is the one change that is safe.
Source: measured on Prefect 3.8.8; server/orchestration/core_policy.py, server/services/cancellation_cleanup.py.

Standard library only, until Prefect's engine is wanted: a run that is not to be does not pay for importing Prefect.
"""

from __future__ import annotations

import base64
import json
import os
import runpy
import ssl
import sys
import urllib.request
from typing import Any

_TIMEOUT_SECONDS = 5.0
_OVER = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


SUPERVISED = "--supervised"


def main() -> None:
    """Run Prefect's engine for the run this process was started for, unless the run is cancelled."""
    if _is_over():
        sys.exit(0)
    if sys.argv[1:] == [SUPERVISED]:
        _supervise()
        return
    sys.argv = ["prefect.engine"]
    try:
        runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
    except SystemExit:
        # It may have been cancelled while the engine loaded the flow, and been refused to run.
        _is_over()
        raise


def _supervise() -> None:
    """As the container's main process: the engine in a process beside this one, which ends with the run."""
    sys.argv = ["orchestrator.engine.supervising"]
    try:
        runpy.run_module("orchestrator.engine.supervising", run_name="__main__", alter_sys=True)
    finally:
        # A cancel between the supervisor's look at the run and the engine's start is seen by neither of them.
        # Source: prefect cli/flow_run.py `execute`, runner/_flow_run_executor.py, 3.8.8.
        _is_over()


def _is_over() -> bool:
    """Whether the run must not run: it has ended, or it is being cancelled, and then it is Cancelled from here on."""
    run_id = os.environ.get("PREFECT__FLOW_RUN_ID")
    api = os.environ.get("PREFECT_API_URL", "").rstrip("/")
    if not run_id or not api:
        return False
    try:
        state = _ask("GET", f"{api}/flow_runs/{run_id}").get("state") or {}
        if state.get("type") == "CANCELLING":
            wanted = {"type": "CANCELLED", "name": "Cancelled", "message": "Cancelled before it began to run."}
            _ask("POST", f"{api}/flow_runs/{run_id}/set_state", {"state": wanted, "force": False})
            return True
        return state.get("type") in _OVER
    except (OSError, ValueError, AttributeError) as e:
        # Whatever is wrong with the API, Prefect's engine deals with it as it always does.
        print(f"orchestrator.start: the run could not be looked at ({type(e).__name__})", file=sys.stderr)  # noqa: T201 - no logger yet
        return False


def _headers() -> dict[str, str]:
    """As Prefect's clients send them. Source: prefect client/base.py, 3.8.8."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key := os.environ.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    elif auth := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = "Basic " + base64.b64encode(auth.encode()).decode()
    custom = json.loads(os.environ.get("PREFECT_CLIENT_CUSTOM_HEADERS") or "{}")
    return headers | {str(name).capitalize(): str(value) for name, value in custom.items()}


def _context() -> ssl.SSLContext:
    """Whom to trust. Source: prefect client/orchestration/__init__.py, 3.8.8."""
    context = ssl.create_default_context(cafile=os.environ.get("PREFECT_API_SSL_CERT_FILE") or None)
    if os.environ.get("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "").lower() in ("1", "true", "yes", "on"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _ask(method: str, url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    # Only http(s) addresses: the URL is the worker's own setting, and anything else would not be an API.
    if not url.startswith(("http://", "https://")):
        raise ValueError("the API's address is no http(s) URL")
    request = urllib.request.Request(url, data, _headers(), method=method)
    context = _context() if url.startswith("https://") else None
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS, context=context) as response:
        answer = json.loads(response.read() or b"{}")
    return answer if isinstance(answer, dict) else {}


if __name__ == "__main__":
    main()
