"""What the attention interface hands out while it is watched."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from transformers import AttentionInterface

from kvtrace.record.capture.caches.tracker import CacheTracker
from kvtrace.record.capture.replaced.interface import INTERFACE
from kvtrace.record.capture.running import Pass, passes


@contextmanager
def forward() -> Iterator[Pass]:
    """A forward that is watched."""
    INTERFACE.hold()
    one = Pass({}, CacheTracker())
    passes().append(one)
    try:
        yield one
    finally:
        passes().remove(one)
        INTERFACE.release()


def one_way() -> str:
    return "one way"


def another_way() -> str:
    return "another way"


def test_layers_that_ask_with_other_defaults_get_their_own():
    interface = AttentionInterface()
    with forward() as seen:
        found = [interface.get_interface("eager", way)() for way in (one_way, another_way, one_way)]
    assert found == ["one way", "another way", "one way"]
    assert [call[2] for call in seen.calls] == found


def test_what_was_registered_between_two_forwards_is_what_the_second_one_gets():
    interface = AttentionInterface()
    found = []
    for way in (one_way, another_way):
        interface["kvtrace_test"] = way
        with forward():
            found += [interface.get_interface("kvtrace_test", one_way)() for _ in range(2)]
    assert found == ["one way"] * 2 + ["another way"] * 2


def test_two_interfaces_with_the_same_name_are_told_apart():
    first, second = AttentionInterface(), AttentionInterface()
    first["kvtrace_test"], second["kvtrace_test"] = one_way, another_way
    with forward():
        found = [one.get_interface("kvtrace_test", one_way)() for one in (first, second)]
    assert found == ["one way", "another way"]


def test_a_name_that_nobody_registered_is_refused_as_ever():
    with forward(), pytest.raises(KeyError, match="not a valid attention implementation"):
        AttentionInterface().get_interface("kvtrace_nobody", one_way)


def test_a_default_that_cannot_be_looked_up_is_no_obstacle():
    class Way:
        __hash__ = None

    interface = AttentionInterface()
    interface["kvtrace_test"] = one_way
    with forward():
        assert interface.get_interface("kvtrace_test", Way())() == "one way"
