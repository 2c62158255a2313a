"""The job folder on any storage: primitives, layout, ledger, item sources, staging.

The law of this floor: no object has two writers, nothing read from a folder is believed before it is checked, and
nothing here knows of Prefect or of an event loop.
"""

from orchestrator.store.folder import JobFolder
from orchestrator.store.formats import Row
from orchestrator.store.jsonl import NotJsonError, decode_json, encode_json
from orchestrator.store.ledger import Carried, Ledger
from orchestrator.store.opening import import_client, open_store, probe
from orchestrator.store.places import Place, here, local_path, register_scheme, resolve, shown
from orchestrator.store.primitives import (
    Entry,
    Store,
    absolute_url,
    check_job_id,
    is_local,
    job_folder_url,
    redact,
)
from orchestrator.store.reading import AttemptFiles, BatchLedger, Counting, count
from orchestrator.store.records import EndRecord, JobRecord, Lease, OutcomeRecord
from orchestrator.store.sources import Source, SourcePolicy, as_source, parse_source, source_from_json
from orchestrator.store.staging import Staged, StageOptions, stage

__all__ = [
    "AttemptFiles",
    "BatchLedger",
    "Carried",
    "Counting",
    "EndRecord",
    "Entry",
    "JobFolder",
    "JobRecord",
    "Lease",
    "Ledger",
    "NotJsonError",
    "OutcomeRecord",
    "Place",
    "Row",
    "Source",
    "SourcePolicy",
    "StageOptions",
    "Staged",
    "Store",
    "absolute_url",
    "as_source",
    "check_job_id",
    "count",
    "decode_json",
    "encode_json",
    "here",
    "import_client",
    "is_local",
    "job_folder_url",
    "local_path",
    "open_store",
    "parse_source",
    "probe",
    "redact",
    "register_scheme",
    "resolve",
    "shown",
    "source_from_json",
    "stage",
]
