"""Copies from a device: in order, never of what was written later, awaited one by one.

There is no device here: main memory plays one, carried by streams that are as late as they may be.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from kvtrace.record.steps import copies, rows
from kvtrace.record.steps.copies import Flight, SideStream, fetch, side_stream
from kvtrace.record.steps.rows import Copying


class Late:
    """A stream that copies when somebody waits for it, no earlier."""

    def __init__(self):
        self.under_way = 0

    def buffer(self, size, dtype):
        return torch.full((size,), 7, dtype=dtype)

    def carry(self, source, target):
        self.under_way += 1

        def wait():
            self.under_way -= 1
            target.copy_(source)

        return wait


@pytest.fixture
def late(monkeypatch):
    """Every copy of the recorder is carried by a late stream."""
    stream = Late()
    monkeypatch.setattr(rows, "fetch", lambda tensors: fetch(tensors, lambda device: stream))
    return stream


def test_a_copy_arrives_when_it_is_awaited(late):
    flight = fetch([torch.arange(3.0), torch.arange(3.0, 7.0)], lambda device: late)
    assert late.under_way == 1
    assert flight.whole.tolist() == [7.0] * 7
    assert flight.land().tolist() == [0.0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_written_after_the_start_is_not_copied(late, count):
    tensors = [torch.ones(4) for _ in range(count)]
    flight = fetch(tensors, lambda device: late)
    for one in tensors:
        one.zero_()
    assert flight.land().tolist() == [1.0] * 4 * count


def test_rows_of_a_late_device_are_those_of_the_start(late):
    copying = Copying()
    static = torch.ones(1, 2, 3, 4)
    half = torch.randn(1, 2, 1, 4).half()
    copying.add("k", [0, 1], [static, static * 2])
    copying.add("q", [5], [half])
    copying.start()
    assert late.under_way == 2
    static.zero_()
    copied = copying.finish()
    assert late.under_way == 0
    assert copied.of("k")[0].tolist() == torch.ones(1, 2, 3, 4).tolist()
    assert copied.of("k")[1].max() == copied.of("k")[1].min() == 2
    assert torch.equal(torch.from_numpy(copied.of("q")[5]), half)


def test_tensors_of_several_devices_keep_their_order(late):
    places = iter([None, late, None])
    groups = [[torch.tensor([1.0])], [torch.tensor([2.0, 3.0])], [torch.tensor([4.0])]]
    whole = late.buffer(4, torch.float32)
    waits = tuple(copies._carried(groups, list(places), whole))
    assert len(waits) == 1
    assert whole.tolist() == [1.0, 7.0, 7.0, 4.0]
    assert Flight(whole, waits).land().tolist() == [1.0, 2.0, 3.0, 4.0]


def test_main_memory_needs_no_stream():
    assert side_stream(torch.device("cpu")) is None
    rows = torch.ones(4)
    flight = fetch([rows])
    rows.zero_()
    assert flight.land().tolist() == [1.0] * 4


class Module:
    """As much of `torch.cuda` as a side stream asks for; says what it was asked."""

    def __init__(self):
        self.log = log = []

        class Stream:
            def __init__(self, device):
                self.device = device

            def wait_stream(self, other):
                log.append(("wait for", other))

        class Event:
            def record(self, stream):
                log.append("event")

            def synchronize(self):
                log.append("awaited")

        self.Stream, self.Event = Stream, Event

    def current_stream(self, device):
        return f"computing on {device}"

    @contextmanager
    def stream(self, stream):
        self.log.append("enter")
        yield
        self.log.append("leave")


def test_the_side_stream_waits_for_what_was_computed_and_its_event_for_the_copy():
    module = Module()

    class OnDevice(torch.Tensor):
        def record_stream(self, stream):
            module.log.append("memory kept")

    class Buffer(torch.Tensor):
        def copy_(self, source, non_blocking=False):
            module.log.append(("copy", non_blocking))
            return self

    stream = SideStream(torch.device("cuda:1"), module)
    wait = stream.carry(torch.ones(2).as_subclass(OnDevice), torch.empty(2).as_subclass(Buffer))
    assert module.log == [
        ("wait for", "computing on cuda:1"),
        "enter",
        ("copy", True),
        "memory kept",
        "event",
        "leave",
    ]
    wait()
    assert module.log[-1] == "awaited"


def test_a_large_copy_takes_no_pinned_memory(monkeypatch):
    asked = []
    plain = torch.empty

    def empty(size, **options):
        asked.append(options.get("pin_memory", False))
        return plain(size, dtype=options["dtype"])

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(copies, "MAX_PINNED_BYTES", 16)
    stream = SideStream(torch.device("cuda"), Module())
    assert stream.buffer(4, torch.float32).shape == (4,)
    assert stream.buffer(5, torch.float32).shape == (5,)
    assert asked == [True, False]


def test_a_machine_without_pinned_memory_still_copies(monkeypatch):
    plain = torch.empty

    def empty(size, **options):
        if options.pop("pin_memory", False):
            raise RuntimeError("no pinned memory is left")
        return plain(size, **options)

    monkeypatch.setattr(torch, "empty", empty)
    assert SideStream(torch.device("cuda"), Module()).buffer(3, torch.float16).shape == (3,)
