"""What the recorder calculates itself is no attention of the model's, wherever it happens."""

import torch

from kvtrace.record.capture.running import our_work
from kvtrace.record.flow import FlowWatch


def attend():
    q, k, v = (torch.ones(1, 2, 3, 4) * n for n in (1, 2, 3))
    return (q @ k.mT).softmax(-1) @ v


def test_our_own_products_are_not_listened_to():
    with FlowWatch(sink=(calls := []).append):
        attend()
        with our_work():
            attend()
        attend()
    assert len(calls) == 2


def test_a_watch_that_begins_within_our_work_listens():
    outer, inner = [], []
    with FlowWatch(sink=outer.append), our_work(), FlowWatch(sink=inner.append):
        attend()
    assert (len(outer), len(inner)) == (0, 1)
