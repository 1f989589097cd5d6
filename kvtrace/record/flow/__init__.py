"""Capture by data flow: attention in any torch code, and the rows it keeps.

`FlowWatch` gives the attention calls of running models to a sink; a `RowFollower` for each site
says which of the rows it was given are new, changed, moved or gone. Knows no cache class, no trace,
no transformers.
"""

from kvtrace.record.flow.modes.heard import Late
from kvtrace.record.flow.rows.follower import RowFollower
from kvtrace.record.flow.rows.row_step import RowStep
from kvtrace.record.flow.rows.texts import GivenRows
from kvtrace.record.flow.watch import FlowWatch

__all__ = ["FlowWatch", "GivenRows", "Late", "RowFollower", "RowStep"]
