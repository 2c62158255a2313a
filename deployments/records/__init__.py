"""Records: fetch pages over HTTP, clean them, load them into a warehouse; then transform, then publish.

    cleaning    plain functions: no Prefect, no network, no database
    warehouse   tables and the keyed upsert, on SQLite and PostgreSQL
    tasks       Prefect tasks: each step with its retries and its name
    flows       batch flows, and the nightly stages

Each imports only from those above it; `tests/unit/deployments` shows how each is tested.
"""
