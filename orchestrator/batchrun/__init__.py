"""The law here: one child run, one attempt at one batch; it never starts an item it has not looked whether it may.

A child run is handed a reference, reads its items, runs them in a window, writes each outcome as it happens, and says
at its end how it ended. Four things run beside each other and share little: the *window* (`window`, `awindow`) runs
items; the *recorder* is the only writer of outcomes and the only counter; the *fence* (`fence`) reads the job folder
and closes the *gate* that each item start looks at; the *news* (`news`) tells people and the parent. `run` composes
them. Nothing here imports Prefect: what is needed of the run's own Prefect is asked through `door.Door`.
"""
