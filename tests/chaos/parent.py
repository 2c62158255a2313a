"""A parent as a plain process: `python -m tests.chaos.parent REQUEST.json [resume]`; the same again resumes the job."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from orchestrator import orchestrate_sync, resume_sync
from orchestrator.errors import OrchestratorError


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    request = json.loads(Path(sys.argv[1]).read_text())
    try:
        if sys.argv[2:] == ["resume"]:
            report = resume_sync(request["job_id"], storage=request["storage"], on_failure="return")
        else:
            report = orchestrate_sync(**request, on_failure="return")
    except OrchestratorError as error:
        logging.getLogger("orchestrator").error("%s", error)
        return error.exit_code
    print(json.dumps(report.to_json()), flush=True)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
