"""Other ways of computing the same tokens, compared with the cached one.

A lane's rows are kept as *passes*: one forward without a cache over whole token paths, written by
`TraceWriter.keep_pass` (a Step over places with its own masks, and StepRows), read back through
`Trace.reference(step, sequence, lane)`. `LaneStep.passes` says, per sequence, where a step's rows
are: (pass, sequence in it, place of the first new row). Rows are matched by place, never filed
under the cached lane's cells: a faulty cache writes other cells than it should. LANE frames hold
the comparison only.
"""
