"""What somebody's file keeps outside of its model is, after a trial, what it was before."""

from __future__ import annotations

import sys
import types

import torch
from torch import nn

from kvtrace.record.driving.trying.private import nothing_left

FILE = """
import torch
from torch import nn

COUNT = 0
SEEN = []
ROWS = torch.zeros(2)


class Keeps(nn.Module):
    held = {}

    def forward(self, ids, memory=[]):
        global COUNT
        COUNT += 1
        SEEN.append(ids)
        ROWS.add_(1)
        self.held[COUNT] = ids
        memory.append(ids)
        return ids
"""


def test_names_lists_tensors_class_attributes_and_defaults_are_what_they_were(monkeypatch):
    script = types.ModuleType("keeps_outside")
    monkeypatch.setitem(sys.modules, script.__name__, script)
    exec(FILE, script.__dict__)
    model: nn.Module = script.Keeps()
    model(torch.ones(1))
    with nothing_left(model, script):
        model(torch.ones(1))
        assert (script.COUNT, len(script.SEEN), script.ROWS.tolist()) == (2, 2, [2, 2])
    assert (script.COUNT, len(script.SEEN), script.ROWS.tolist()) == (1, 1, [1, 1])
    assert list(script.Keeps.held) == [1]
    assert len(script.Keeps.forward.__defaults__[0]) == 1
