"""Measurements, as ratios of two things in one run: `make bench`, or `python -m benchmarks NAME...` for some of them.

Each module measures one claim and gives rows of one table. Machines differ and are noisy: a ratio of two things that
were measured one after the other, in turns, says more than seconds. Nothing here is asserted by the clock in the
tests; `tests/integration/test_benchmarks_short.py` runs a short form of each.
"""
