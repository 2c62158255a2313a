"""The law here: the only folder that calls Prefect's client. Three doors, and nothing decided behind them.

`gateway` is the parent's door as a Protocol, with two implementations that pass one contract suite (`memory`,
`parent`); `child` is what a batch flow needs of its own run; `admin` is what `doctor`, `deploy` and `up` ask.
Prefect's answers are translated here into our values and our errors, once.
"""
