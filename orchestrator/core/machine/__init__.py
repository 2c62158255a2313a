"""What a job does next: a state machine over its batches, pure and alone in knowing the rules.

Theory. A job is a list of batches; each batch is in one *stage* (`table.Stage`) and on one *attempt*. The outside world
is told to the machine as events; `step(state, event, at)` changes the state and answers with commands. Nothing is
awaited, nobody else changes the state, and whatever the reactor does comes back as an event. So every race between
Prefect, the children, the clock and people is a row of `table.TABLE`, and all of them can be played in a test.

The rules that the rows keep:

* *News is a hint, the record is the truth.* A batch leaves `in_flight` only on a terminal state that was read, or on a
  record that is gone. Older attempts' news, repeated news and news after the end change nothing.
* *Asked is not done.* `submitting`, `unknown` and `stopping` say "asked"; all three hold a place of the window, so that
  there are never more than `max_in_flight` children whose end nobody has read.
* *The ledger decides.* A terminal state only says that the ledger can be read now (`closing`): what it says makes the
  outcome. Prefect's Crashed, Cancelled and Completed decide nothing about items.
* *A lost attempt is revoked before the next one exists*, so that two attempts never both count an item.
* *A stop is written before anything else*, only escalates (drain, then cancel), and ends within its deadline: whoever
  was not seen to end by then is named `unconfirmed`.
* *A switch is a question.* It is asked after every event that changed a count, the last one included, and trips once.

The state is one object changed in place inside `step` (copying it per event costs a hundred times as much at 10,000
batches); events and commands are frozen.
"""

from orchestrator.core.machine.state import BatchState, Setup, State
from orchestrator.core.machine.step import step
from orchestrator.core.machine.table import TABLE, Stage

__all__ = ["TABLE", "BatchState", "Setup", "Stage", "State", "step"]
