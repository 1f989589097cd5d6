"""Two traces, one of them damaged: what is whole is compared, and what is not is told."""

import io
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch

import kvtrace
from builders.raw_frames import split
from kvtrace.analysis.checks import DIVERGED, EQUAL, UNCHECKED, check
from kvtrace.analysis.two_runs.diff import diff
from kvtrace.cli.entry import main
from kvtrace.files.layout import Kind
from kvtrace.files.recover import recover
from kvtrace.trace import Tensor
from verify import bugs

TOKENS = [5, 9, 30, 7, 81, 44]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "whole.kvt"
    model, cache = bugs.llama(), None
    with kvtrace.record(model, path, referee=True), torch.no_grad():
        for part in (TOKENS[:4], TOKENS[4:5], TOKENS[5:]):
            cache = model(torch.tensor([part]), past_key_values=cache).past_key_values
    return path


def damaged(whole, tmp_path, rows):
    """A copy in which a bit of these rows is flipped."""
    data = bytearray(whole.read_bytes())
    at = data.find(np.ascontiguousarray(rows).tobytes())
    assert at > 0
    data[at + 2] ^= 1
    path = tmp_path / "damaged.kvt"
    path.write_bytes(data)
    return path


def said(*paths):
    out = io.StringIO()
    with redirect_stdout(out):
        code = main(["diff", *map(str, paths)])
    return code, " ".join(out.getvalue().split())


def test_damaged_rows_are_no_pass_and_all_others_are_compared(whole, tmp_path):
    rows = kvtrace.open(whole).rows(1, 1, Tensor.OUTPUT)
    path = damaged(whole, tmp_path, rows)
    for pair in ((whole, path), (path, whole)):
        found = diff(*map(kvtrace.open, pair))
        assert (found.verdict, found.exit_code, found.tokens) == (UNCHECKED, 3, 6)
        assert "what can be read is equal within rounding, but not all can" in found.reason
        assert "step 1, layer 1, output" in found.unread[0]
        assert (found.growth == 0).all()
    code, text = said(whole, path)
    assert code == 3
    assert "Mind: damaged.kvt: step 1, layer 1, output: damaged" in text
    assert "incomplete" not in text


def test_a_difference_beside_damage_is_one(whole, tmp_path):
    path = damaged(whole, tmp_path, kvtrace.open(whole).rows(2, 1, Tensor.OUTPUT))
    model = bugs.llama()
    model.model.layers[1].self_attn.scaling *= 1.5
    other = tmp_path / "other.kvt"
    with kvtrace.record(model, other), torch.no_grad():
        model(torch.tensor([TOKENS]))
    found = diff(kvtrace.open(path), kvtrace.open(other))
    assert (found.verdict, found.exit_code) == (DIVERGED, 1)
    assert (found.first.layer, found.first.tensor) == (1, Tensor.OUTPUT)
    assert len(found.unread) == 1


@pytest.mark.parametrize("lane", ["recomputed", "referee"])
def test_a_damaged_lane_takes_nothing_from_the_runs(whole, tmp_path, lane):
    rows = kvtrace.open(whole).reference(2, 0, lane).rows(1, Tensor.QUERIES)
    path = damaged(whole, tmp_path, rows)
    found = diff(kvtrace.open(whole), kvtrace.open(path))
    assert (found.verdict, found.exit_code) == (EQUAL, 0)
    assert f"of the {lane} lane, layer 1, queries" in found.unread[0]
    code, text = said(path, whole)
    assert code == 0
    assert f"Mind: damaged.kvt: pass 0 of the {lane} lane" in text


def test_a_step_that_is_gone_ends_what_is_compared(whole, tmp_path):
    data = whole.read_bytes()
    at = data.find(b'"number":2') if b'"number":2' in data else data.find(b'"number": 2')
    assert at > 0
    path = tmp_path / "damaged.kvt"
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    found = diff(kvtrace.open(whole), kvtrace.open(path))
    assert (found.verdict, found.tokens) == (UNCHECKED, 5)
    assert "step 2 is damaged" in found.unread[0]


def frames(path, kind):
    return [frame for frame in split(path)[1] if frame.kind == kind]


def test_rows_that_a_recovered_copy_lacks_are_no_pass_of_a_diff_and_told_by_a_check(
    whole, tmp_path
):
    path, copy = (
        damaged(whole, tmp_path, kvtrace.open(whole).rows(1, 1, Tensor.OUTPUT)),
        tmp_path / "copy.kvt",
    )
    recover(path, copy)
    code, text = said(whole, copy)
    assert code == 3
    assert "Mind: copy.kvt: not recovered: damaged.kvt: step 1, layer 1, output: damaged" in text
    checked = check(kvtrace.open(copy))
    assert (checked.verdict, checked.steps) == (EQUAL, 3)
    assert (
        "copy.kvt is a copy; not recovered: damaged.kvt: step 1, layer 1, output"
        in (checked.caveats[0])
    )


def test_a_last_step_that_a_recovered_copy_lacks_is_missed_though_none_follows(whole, tmp_path):
    data = bytearray(whole.read_bytes())
    data[frames(whole, Kind.STEP)[-1].offset + 70] ^= 1
    (tmp_path / "damaged.kvt").write_bytes(data)
    copy = tmp_path / "copy.kvt"
    assert recover(tmp_path / "damaged.kvt", copy).steps == 2
    trace = kvtrace.open(copy)
    assert (trace.missing, trace.is_whole) == (["step 2 is not in the file"], False)
    checked = check(trace)
    assert (checked.verdict, checked.exit_code) == (UNCHECKED, 3)
    assert "copy.kvt is incomplete: step 2 is not in the file" in checked.reason
    assert said(copy, whole)[0] == 3


def test_a_lost_comparison_spoils_no_diff_and_is_told(whole, tmp_path):
    data = bytearray(whole.read_bytes())
    data[frames(whole, Kind.LANE)[1].offset + 70] ^= 1
    (tmp_path / "damaged.kvt").write_bytes(data)
    copy = tmp_path / "copy.kvt"
    recover(tmp_path / "damaged.kvt", copy)
    code, text = said(whole, copy)
    assert code == 0
    assert "Mind: copy.kvt: not recovered: damaged.kvt: step 1, comparison with the" in text
    assert check(kvtrace.open(copy)).exit_code == 3
