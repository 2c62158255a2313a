"""Some of a `prefect.yaml`'s deployments, without the others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from orchestrator.stack.api import StackError
from orchestrator.stack.own import OWN


def only(path: Path, names: Sequence[str], folder: Path) -> Path:
    """A copy of a `prefect.yaml` with the named deployments alone.

    Prefect's own `--name flow/deployment` deploys every one of that deployment's name, whatever its flow.
    Source: prefect cli/deploy/_config.py `_parse_name_from_pattern`, 3.8.8.
    """
    content = yaml.safe_load(path.read_text())

    own = {deployment.entrypoint: deployment.name.partition("/")[0] for deployment in OWN}

    def name_of(entry: Mapping[str, Any]) -> str:
        if (flow := own.get(str(entry["entrypoint"]))) is not None:  # their flows are not named after the functions
            return f"{flow}/{entry['name']}"
        return f"{re.split('[:.]', str(entry['entrypoint']))[-1].replace('_', '-')}/{entry['name']}"

    chosen = {name_of(entry): entry for entry in content["deployments"] if name_of(entry) in names}
    if missing := [name for name in names if name not in chosen]:
        raise StackError(f"{path} has no deployment {', '.join(missing)}")
    copy = folder / path.name
    copy.write_text(yaml.safe_dump(content | {"deployments": list(chosen.values())}))
    return copy
