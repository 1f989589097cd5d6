import sys

import pytest

from kvtrace_tui.turns import TURN_S, short_turns


def test_threads_take_turns_often_only_while_the_app_runs():
    before = sys.getswitchinterval()
    with short_turns():
        assert sys.getswitchinterval() == pytest.approx(TURN_S)
    assert sys.getswitchinterval() == before
