"""Whether a deployment's flow takes these parameters: asked before anything is created.

Prefect checks types when a run is created, lets unknown names pass until the run fails in its process, and interprets
some values. Source: server/api/deployments.py, 3.8.8.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from prefect.utilities.schema_tools.validation import validate

from orchestrator.engine.gateway import Deployment
from orchestrator.errors import ConfigurationError


def check_parameters(
    deployment: Deployment, parameters: Mapping[str, Any], *, supplied: Collection[str] = (), field: str = "parameters"
) -> None:
    """Refuse parameters that the flow does not take.

    Args:
        parameters: JSON values by name.
        supplied: Names that we fill in ourselves (`batch`, the parameter that takes the items).

    Raises:
        ConfigurationError: a name is unknown (with near matches), missing, or its value is of the wrong type.
    """
    schema = dict(deployment.parameter_schema)
    properties: Mapping[str, Any] = schema.get("properties") or {}
    for name in parameters:
        if name in supplied:
            raise ConfigurationError(f"{name!r} is filled in for each child run; leave it out", field=field)
        if name not in properties:
            own = [p for p in properties if p not in supplied and p != "items"]
            near = difflib.get_close_matches(name, own, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it takes {_listed(own)}."
            raise ConfigurationError(f"the flow of {deployment.name!r} has no parameter {name!r}; {hint}", field=field)
    for name in schema.get("required") or ():
        if name not in parameters and name not in supplied:
            raise ConfigurationError(f"the flow of {deployment.name!r} needs a value for {name!r}", field=field)
    relaxed = {**schema, "required": []}
    for error in validate(dict(parameters), relaxed, raise_on_error=False, preprocess=True):
        where = ".".join(str(part) for part in error.absolute_path) or "parameters"
        raise ConfigurationError(f"{where}: {error.message[:300]}", field=field)


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names)) if names else "no parameters of its own"
