"""What a running forward knows of itself."""

from __future__ import annotations

import torch

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.running import Followed, Pass

ASKED, SEEN = torch.nn.Identity(), torch.nn.Identity()


def test_a_call_that_asked_for_its_attention_and_was_followed_counts_once():
    one = Pass(names={id(ASKED): "asked", id(SEEN): "seen"}, tracker=None)
    one.calls += [((ASKED,), {}, None, True, 0), followed("asked")]
    assert one.num_calls == 1
    one.calls.append(followed("seen"))
    assert one.num_calls == 2
    one.calls.append(((), {"module": ASKED}, None, True, 0))
    assert one.num_calls == 3


def followed(module):
    rows = torch.zeros(1, 1, 1, 4)
    return Followed(
        AttentionCall(
            module=module,
            call=0,
            layer=0,
            kind="self",
            queries=rows,
            keys=rows,
            values=rows,
            output=rows,
            scale=0.5,
            causal=True,
        ),
        0,
    )
