"""Compressed rows beside a window, as DeepSeek-V4 keeps them: they claim no token."""

import json

import numpy as np
import pytest
import torch

from builders.recorded import record
from builders.tiny_models import tiny_model
from kvtrace.analysis.rows.origin import UNKNOWN, attended_rows, origin, tokens_of_rows
from kvtrace.cli.entry import main
from kvtrace.trace import stands_for_none

PROMPT = 11


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("traces") / "v4.kvt"


@pytest.fixture(scope="module")
def trace(path):
    model = tiny_model("deepseek_v4")
    ids = torch.arange(3, 3 + PROMPT)[None]

    def run():
        model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)

    return record(model, run, path, recompute="once")[0]


def compressed(trace):
    """The site whose rows are more than those of the window."""
    return next(site.index for site in trace.meta.sites if site.source == "derived")


def test_rows_of_the_window_have_their_tokens_and_compressed_ones_have_none(trace):
    layer = compressed(trace)
    for step in trace:
        rows = attended_rows(trace, step.number, layer)
        window = attended_rows(trace, step.number, layer - 1)
        none = [stands_for_none(position) for position in rows.positions.tolist()]
        tokens = tokens_of_rows(trace, step.number, layer)
        assert none.count(True) in (2, 3)
        assert [p for p in rows.positions.tolist() if p >= 0] == window.positions.tolist()
        assert [token == UNKNOWN for token in tokens.tolist()] == none


def test_nothing_that_a_compressed_row_holds_was_rewritten(trace):
    layer = compressed(trace)
    last = trace.numbers[-1]
    row = len(attended_rows(trace, last, layer).cells) - 1
    found = origin(trace, last, layer, row)

    assert (found.for_none, found.padding, found.changed, found.token) == (True, False, False, -1)
    assert all(group.rewritten == 0 for step in trace for group in step.caches)


def test_show_says_so_and_json_gives_no_position(trace, path, capsys):
    place = ["show", str(path), "--layer", str(compressed(trace)), "--step", "0"]

    assert main(place) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("no single token" in line and " – " in line for line in lines)
    assert main([*place, "--json"]) == 0
    places = json.loads(capsys.readouterr().out)["at"]["attention"]["positions"]
    assert places == [*range(PROMPT), None, None]


def said(trace):
    return [note.text for note in trace.notes if note.kind == "finding"]


def test_the_other_lane_says_once_that_compressed_rows_are_not_compared(trace):
    (text,) = said(trace)
    assert text.startswith(f"UNKNOWN: {trace.site(compressed(trace)).module}: rows that are not")
    last = trace.compared(trace.numbers[-1])
    assert not (last.beyond > 0).any()


def test_patches_of_bytes_are_one_sentence_and_no_difference(tmp_path):
    model, ids = tiny_model("blt"), torch.arange(3, 11)[None]

    def run():
        with torch.no_grad():
            for end in (6, 7, 8):
                model(ids[:, :end], use_cache=False)

    trace = record(model, run, tmp_path / "a.kvt", recompute="once")[0]
    (text,) = said(trace)
    assert "and 8 more: rows that are not one a token are others when" in text
    compared = [trace.compared(number) for number in trace.numbers]
    assert not any((one.beyond > 0).any() for one in compared)
    # bytes are compared all the same
    byte = next(site.index for site in trace.meta.sites if "patcher" in site.module)
    assert np.isfinite(compared[-1].relative[byte]).all()
