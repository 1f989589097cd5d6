"""Time is that of the work, also where a call returns when its work is only queued."""

from __future__ import annotations

import torch

import kvtrace
from builders.tiny_models import tiny_model
from kvtrace.record.capture.clock import DeviceClock, Took
from kvtrace.record.capture.running import Pass

MS = 1_000_000


class Event:
    """One in a queue whose times are known."""

    def __init__(self, at_ms=0.0, *, enable_timing=True):
        self.at_ms, self.waited, self.stream = at_ms, 0, None

    def record(self, stream):
        self.stream = stream

    def synchronize(self):
        self.waited += 1

    def elapsed_time(self, last):
        return last.at_ms - self.at_ms


def took(host, own, device):
    return Took(host * MS, own * MS, (Event(5.0),), (Event(5.0 + device),)).ns() / MS


def test_without_a_device_it_is_the_time_until_the_call_returns_less_our_own():
    assert Took(10 * MS, 3 * MS).ns() == 7 * MS


def test_a_device_that_is_behind_counts_until_it_has_done_the_work():
    assert took(host=10, own=0, device=25) == 25


def test_our_own_time_is_hidden_by_a_device_that_is_behind_by_more():
    assert took(host=10, own=3, device=25) == 25


def test_our_own_time_counts_where_the_device_waited_for_it():
    assert took(host=10, own=3, device=10) == 7
    assert took(host=10, own=3, device=11) == 9


def test_a_device_that_was_done_before_the_call_returned_adds_nothing():
    assert took(host=10, own=3, device=2) == 7


def test_the_slowest_of_several_devices_counts():
    marks = (Event(0.0), Event(0.0)), (Event(12.0), Event(30.0))
    assert Took(10 * MS, 0, *marks).ns() == 30 * MS
    assert [event.waited for event in marks[1]] == [1, 1]


class Module:
    """A device's module with streams and events."""

    Event = Event

    def current_stream(self, device):
        return f"stream of {device}"


def test_an_event_is_put_in_the_queue_of_each_device_before_and_after():
    devices = [torch.device("cpu"), *(torch.device("cuda", place) for place in (0, 1, 0))]
    clock, one = DeviceClock(devices, lambda device: Module()), Pass({}, tracker=None)
    clock.begin(one)
    found = clock.took(one, one.started + 10)
    for marks in (found.before, found.after):
        assert [event.stream for event in marks] == ["stream of cuda:0", "stream of cuda:1"]
    assert found.host_ns == 10


def test_a_device_without_events_is_waited_for():
    calls = []

    class Plain:
        def synchronize(self):
            calls.append("waited")

    clock, one = DeviceClock([torch.device("mps", 0)], lambda device: Plain()), Pass({}, None)
    clock.begin(one)
    found = clock.took(one, one.started)
    assert len(calls) == 2
    assert found.ns() >= 0


def test_a_step_and_its_lane_say_what_the_device_took(tmp_path, monkeypatch):
    class Slow(Event):
        at = 0.0

        def record(self, stream):
            Slow.at += 1e6  # 1,000 s from each event to the next
            self.at_ms = Slow.at

    module = Module()
    module.Event = Slow

    def clock(devices):
        return DeviceClock([torch.device("cuda", 0)], lambda device: module)

    monkeypatch.setattr("kvtrace.record.capture.watch.DeviceClock", clock)
    model = tiny_model("gpt2")
    with kvtrace.record(model, tmp_path / "a.kvt", recompute="each"):
        model.generate(torch.arange(3, 9)[None], max_new_tokens=4, min_new_tokens=4)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [step.elapsed_ns for step in trace] == [10**12] * 4
    assert [trace.compared(number).elapsed_ns for number in trace.numbers] == [10**12] * 4
