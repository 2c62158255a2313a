"""Fan a collection of items out over a Prefect deployment."""
