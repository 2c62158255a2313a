"""The law here: pure. No I/O, clock, randomness, logging, await, Prefect or settings; values in, values out.

`model` holds the values, `batching` cuts items into batches, `killswitch` is the language of stopping, `machine`
decides what a job does next, `tally` counts, `report` says how it ended. import-linter keeps the outside out.
"""
