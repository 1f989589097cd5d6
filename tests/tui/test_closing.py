"""What goes on beside the screen ends with it."""

from concurrent.futures import CancelledError

import pytest

from builders import Shape, synthetic_trace
from builders.screens import app_of, until


@pytest.fixture
def trace():
    return synthetic_trace(Shape(layers=2, heads=2, prompt=4, decode=3))


@pytest.mark.parametrize("gone", [RuntimeError, CancelledError])
async def test_a_check_that_outlives_the_screen_ends_without_a_word(trace, monkeypatch, gone):
    app = app_of(trace)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: app.screen.desk.answer.verdict not in ("", "checking"))
        screen, said = app.screen, []

        def closed(*words):
            said.append(words)
            raise gone

        monkeypatch.setattr(app, "call_from_thread", closed)
        screen._check(trace, "recomputed")
    assert len(said) == 1
