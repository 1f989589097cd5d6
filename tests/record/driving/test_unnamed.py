"""Parameters whose names say nothing: their own generation shows what for, or trying does."""

import textwrap

import pytest

from builders.driven import run_file
from builders.people import HERE

CORE = f"""
import sys
sys.path.append({str(HERE)!r})
import torch
from parts import LAYERS, Core, length
"""

INSIDE = """
class Mine(Core):
    def __init__(self):
        super().__init__()
        self.trail = None
    def forget(self):
        self.trail = None
    def forward(self, ids, remember=False):
        logits, grown = self.grown(ids, self.trail if remember else None,
                                   length(self.trail) if remember else 0)
        if remember:
            self.trail = grown
        return logits
"""

PASSED = """
class Mine(Core):
    def forward(self, ids, scale=1.0, trail=None):
        return self.grown(ids, trail, length(trail))
"""

COUNTED = """
class Mine(Core):
    def forward(self, ids, trail=None, t=0):
        return self.grown(ids, trail, t)
"""

SHOWN = """
class Mine(Core):
    def forward(self, ids, remember=False, trail=None, where=None):
        assert remember or trail is None
        begin = 0 if where is None else where + WRONG * (where > 0)
        logits, grown = self.grown(ids, trail, begin)
        return (logits, grown) if remember else logits
    def generate(self, ids, n):
        trail, new, seen = None, ids, 0
        for _ in range(n):
            logits, trail = self(new, remember=True, trail=trail, where=seen)
            seen += new.shape[1]
            new = logits[:, -1:].argmax(-1)
            ids = torch.cat((ids, new), 1)
        return ids
"""


@pytest.fixture
def mine(tmp_path):
    def run(code):
        (tmp_path / "mine.py").write_text(CORE + textwrap.dedent(code))
        return run_file(f"{tmp_path / 'mine.py'}:Mine").driven

    return run


def test_a_flag_that_keeps_rows_is_found_by_what_it_does(mine):
    driven = mine(INSIDE)
    assert driven.call == "model(ids [1, new], remember=True)"
    assert "first model.forget()" in driven.said[0]


@pytest.mark.parametrize(
    ("code", "call"),
    [
        (PASSED, "model(ids [1, new], trail=cache)"),
        (COUNTED, "model(ids [1, new], trail=cache, t=start)"),
    ],
)
def test_a_cache_and_its_place_are_found_by_what_they_do(mine, code, call):
    assert mine(code).call == call


@pytest.mark.parametrize("wrong", [0, 1])
def test_their_own_generation_shows_what_is_for_the_cache_even_where_it_is_wrong(mine, wrong):
    driven = mine(SHOWN.replace("WRONG", str(wrong)))
    assert driven.call == "model(ids [1, new], trail=cache, where=start, remember=True)"
    assert "as its own code does" in driven.said[0]
    assert len(driven.said) == 1 + wrong


def test_a_model_without_a_cache_is_not_given_one(mine):
    driven = mine(
        """
        class Mine(Core):
            def forward(self, ids, noisy=False, extra=None, level=0):
                if noisy:
                    ids = ids.flip(1)
                return self.full(ids)
        """
    )
    assert "no cache was found" in driven.said[0]


NAMED_AFTER = """
class Kept:
    def __init__(self, width):
        self.width, self.rows = width, None

class Mine(Core):
    def METHOD(self):
        return Kept(41)
    def forward(self, ids, ARGUMENT=None):
        kept = ARGUMENT or self.METHOD()
        logits, kept.rows = self.grown(ids, kept.rows, length(kept.rows))
        return logits
"""


@pytest.mark.parametrize(
    ("argument", "method"), [("ctx", "context"), ("store", "open_store"), ("tape", "tape")]
)
def test_a_cache_begins_as_the_method_says_that_its_parameter_is_called_after(
    mine, argument, method
):
    driven = mine(NAMED_AFTER.replace("ARGUMENT", argument).replace("METHOD", method))
    assert driven.call == f"model(ids [1, new], {argument}=cache)"
    assert f"model.{method}()" in driven.said[0]
