"""Waiting for what may never end."""

import signal
import threading

import pytest

from kvtrace.errors import HubError
from kvtrace.models.patience import patiently


def stuck():
    return HubError("nothing moved")


def test_the_result_and_the_error_of_the_work_come_back():
    assert patiently(lambda: 7, 5.0, stuck) == 7
    with pytest.raises(ZeroDivisionError):
        patiently(lambda: 1 // 0, 5.0, stuck)


def test_work_that_never_ends_is_given_up():
    with pytest.raises(HubError, match="nothing moved"):
        patiently(threading.Event().wait, 0.1, stuck)


def test_signs_of_life_extend_the_wait():
    turns = iter(range(1000))
    ended = threading.Event()

    def pulse():
        turn = next(turns)
        if turn == 8:
            ended.set()
        return turn

    # eight looks take longer than the limit between two of them
    assert patiently(ended.wait, 0.2, stuck, pulse) is True


def test_ctrl_c_is_heard_while_waiting(request):
    # a shell's background job begins with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    timer = threading.Timer(0.1, lambda: signal.raise_signal(signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        patiently(threading.Event().wait, 30.0, stuck)
    timer.join()
