"""Capture by data flow: attention in any torch code, and the rows it keeps.

What others call:

- `FlowWatch(*models, sink=…, only=…)`: a context manager that gives `AttentionCall`s (level 2: SDPA
  and other fused calls; level 3: products and a softmax) to `sink` while the forward runs; `unseen`
  and `notes` say what it could not read and what it assumed. `adopt` adds a model, `begin_step`
  says where a step begins when no watched model's own forward does. With `late`, forwards like
  the ones before are only listened to, and their calls are given to `late.take` when they are over.
- `RowFollower().step(Given(…))`: which rows that a site was given are new, unchanged, changed,
  moved or gone since the steps before, as a `RowStep` of cells. One follower for each site.

Knows no cache class, no trace, no transformers.
"""

from kvtrace.record.flow.modes.heard import Late
from kvtrace.record.flow.rows.follower import RowFollower
from kvtrace.record.flow.rows.row_step import RowStep
from kvtrace.record.flow.rows.texts import GivenRows
from kvtrace.record.flow.watch import FlowWatch

__all__ = ["FlowWatch", "GivenRows", "Late", "RowFollower", "RowStep"]
