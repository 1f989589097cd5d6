"""Requests of a continuous batch are chosen by name, as other sequences are by number."""

from __future__ import annotations

from msgspec.structs import replace

from builders import synthetic_trace
from kvtrace.analysis.branches import branches, twigs
from kvtrace.trace import Packed
from kvtrace_tui.screens.pages.branches import branch_rows


def test_the_tree_names_the_request_of_each_line():
    trace = synthetic_trace()
    for number, step in list(trace.source.steps.items()):
        trace.source.steps[number] = replace(step, packed=Packed(number, "chat-7", 0, 1))
    tree = branches(trace)
    rows = branch_rows(trace, tree, twigs(tree), -1, 100, 0)
    lines = ["".join(words for words, _ in pieces) for pieces, _ in rows]
    assert any(line.endswith("chat-7 steps 0–6") for line in lines)
