"""What holds the rows an attention was given."""

import torch

from kvtrace.record.cache.own.find_holder import find
from kvtrace.record.cache.own.holders import Holder


def test_no_more_rows_are_looked_at_than_tell_who_holds_them():
    held = torch.randn(1, 2, 50, 4)
    asked = []

    def slots():
        for slot in range(49, -1, -1):
            asked.append(slot)
            yield slot

    found = find(held.clone(), slots(), [Holder("cache", held, 2)])
    assert found is not None
    assert (found.name, found.axis, found.slots) == ("cache", 2, 50)
    assert asked == [49, 48]


def test_which_rows_a_smaller_tensor_holds_is_said_only_if_asked_for():
    rows = torch.randn(1, 2, 6, 4)
    among = [Holder("cache", rows[:, :, :4].clone(), 2)]
    slots = [3, 2]
    found, brief = find(rows, slots, among), find(rows, slots, among, which=False)
    assert found is not None
    assert brief is not None
    assert found.kept == (0, 1, 2, 3)
    assert brief.kept is None
