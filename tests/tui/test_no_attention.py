"""A run of which no attention was seen: the screen says that, whatever is asked of a layer."""

import pytest

from builders import without_attention
from builders.screens import app_of, press, shown

SEEN = "no attention was seen in this run"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("]", SEEN),
        ("}", SEEN),
        ("y", SEEN),
        ("d", f"{SEEN}: there is nothing to compare"),
        ("D", f"{SEEN}: there is nothing to compare"),
    ],
)
async def test_a_key_that_is_about_a_layer_says_that_there_is_none(keys, words):
    app = app_of(without_attention())
    async with app.run_test(size=(120, 40)) as pilot:
        await press(pilot, *keys)
        assert words in shown(app)[-1]


async def test_no_layer_stands_in_the_status_line():
    app = app_of(without_attention())
    async with app.run_test(size=(120, 40)) as pilot:
        await press(pilot, "n")
        assert "step 2/6" in shown(app)[0]
        assert "L0" not in shown(app)[0]
