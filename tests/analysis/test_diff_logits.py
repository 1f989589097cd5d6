"""Two runs that attend alike: what follows the last attention tells them apart."""

import io
import json
from contextlib import redirect_stdout

import pytest
import torch

import kvtrace
from kvtrace.analysis.checks import DIVERGED, EQUAL
from kvtrace.analysis.two_runs.diff import diff
from kvtrace.cli.entry import main
from verify import bugs

TOKENS = [5, 9, 30, 7, 81, 44]


def fed(path, change=None, *, sizes=(4, 2), dtype=torch.float32):
    model, cache, start = bugs.llama().to(dtype), None, 0
    if change is not None:
        change(model)
    with kvtrace.record(model, path, recompute="off"), torch.no_grad():
        for size in sizes:
            part = torch.tensor([TOKENS[start : start + size]])
            cache, start = model(part, past_key_values=cache).past_key_values, start + size
    return kvtrace.open(path)


def louder(model):
    model.model.norm.weight.data *= 1.2


def rounded_queries(model):
    model.model.layers[0].self_attn.q_proj.weight.data *= 1.01


def much_louder_once_on_rounded_queries(model):
    calls = iter(range(99))
    model.model.norm.register_forward_hook(lambda *given: given[2] * (4 if next(calls) == 2 else 1))
    rounded_queries(model)


def louder_on_rounded_queries(model):
    louder(model)
    rounded_queries(model)


def other_head_on_rounded_queries(model):
    other_head(model)
    rounded_queries(model)


def other_head(model):
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flip(0) * 20)


@pytest.mark.parametrize("change", [louder, other_head])
def test_logits_that_differ_are_a_difference_though_attention_is_equal(change, tmp_path):
    old, new = fed(tmp_path / "a.kvt"), fed(tmp_path / "b.kvt", change)
    found = diff(old, new)
    assert (found.verdict, found.exit_code, found.first) == (DIVERGED, 1, None)
    assert (found.logits.new_step, found.logits.position) == (0, 3)
    assert (found.growth == 0).all()
    out = io.StringIO()
    with redirect_stdout(out):
        code = main(["diff", str(tmp_path / "a.kvt"), str(tmp_path / "b.kvt")])
    assert code == 1
    head, _, where, *_ = out.getvalue().splitlines()
    assert head == "diverged at step 0, the logits, though all attention is equal"
    assert where.startswith("  position 3: off by ")


def test_programs_read_where_logits_part(tmp_path):
    fed(tmp_path / "a.kvt")
    fed(tmp_path / "b.kvt", louder)
    out = io.StringIO()
    with redirect_stdout(out):
        main(["diff", str(tmp_path / "a.kvt"), str(tmp_path / "b.kvt"), "--json"])
    told = json.loads(out.getvalue())
    assert (told["exit_code"], told["logits"]["position"]) == (1, 3)


def test_logits_of_equal_models_are_equal_whatever_steps_gave_them(tmp_path):
    old, chunks = fed(tmp_path / "a.kvt"), fed(tmp_path / "b.kvt", sizes=(2, 3, 1))
    found = diff(old, chunks)
    assert (found.verdict, found.logits) == (EQUAL, None)


def test_narrow_logits_that_are_off_once_are_left_alone_where_attention_rounds(tmp_path):
    # an expert that rounding chooses in the last layer moves them as far
    kinds = {"sizes": (2, 1, 1, 1, 1), "dtype": torch.bfloat16}
    old = fed(tmp_path / "a.kvt", **kinds)
    new = fed(tmp_path / "b.kvt", much_louder_once_on_rounded_queries, **kinds)
    found = diff(old, new)
    assert found.growth.any()
    assert found.verdict == EQUAL


@pytest.mark.parametrize("sizes", [(2, 1, 1, 1, 1), (6,)])
@pytest.mark.parametrize("old", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [louder_on_rounded_queries, other_head_on_rounded_queries])
def test_narrow_logits_that_are_off_throughout_are_a_difference(change, old, sizes, tmp_path):
    before = fed(tmp_path / "a.kvt", dtype=old, sizes=sizes)
    after = fed(tmp_path / "b.kvt", change, dtype=torch.bfloat16, sizes=sizes)
    rounded = fed(tmp_path / "c.kvt", rounded_queries, dtype=torch.bfloat16, sizes=sizes)
    found = diff(before, after)
    assert (found.verdict, found.first, found.logits.new_step) == (DIVERGED, None, 0)
    assert diff(before, rounded).verdict == EQUAL


@pytest.mark.parametrize("change", [louder, other_head])
def test_logits_of_narrow_types_differ_for_a_reason_where_attention_is_the_same(change, tmp_path):
    narrow = [
        fed(tmp_path / name, one, dtype=torch.bfloat16)
        for name, one in (("a.kvt", None), ("b.kvt", change), ("c.kvt", None))
    ]
    found = diff(*narrow[:2])
    assert (found.verdict, found.logits.position) == (DIVERGED, 3)
    assert diff(narrow[0], narrow[2]).verdict == EQUAL


def test_a_row_of_the_head_that_is_never_likely_shows_in_the_sum_of_all(tmp_path):
    def change(model):
        model.lm_head.weight.data[other] *= 3

    old = fed(tmp_path / "a.kvt")
    likely = {one for step in old for top in step.top for one in top.ids}
    other = next(one for one in range(300) if one not in likely)
    new = fed(tmp_path / "b.kvt", change)
    found = diff(old, new)
    assert (found.verdict, found.logits.others) == (DIVERGED, True)
    out = io.StringIO()
    with redirect_stdout(out):
        main(["diff", str(tmp_path / "a.kvt"), str(tmp_path / "b.kvt")])
    assert "the highest are the same to the last bit, the sum of all is off by" in out.getvalue()


def test_an_equal_verdict_says_which_logits_it_compared(tmp_path):
    fed(tmp_path / "a.kvt")
    out = io.StringIO()
    with redirect_stdout(out):
        main(["diff", str(tmp_path / "a.kvt"), str(tmp_path / "a.kvt")])
    assert (
        "Of the logits after each step the 20 highest and the sum of all were compared"
        in " ".join(out.getvalue().split())
    )
