"""Format 1 stays readable for ever: the file that its first version wrote."""

import hashlib

import numpy as np
import pytest

from builders.reading import read_all, same
from kvtrace.files import open_trace
from kvtrace.files.describe import describe
from kvtrace.trace import Tensor
from kvtrace_fixtures.traces import GOLDEN, format_1


@pytest.fixture(scope="module")
def golden():
    return open_trace(GOLDEN)


def test_the_golden_file_is_the_one_that_was_first_written():
    digest = hashlib.sha256(GOLDEN.read_bytes()).hexdigest()
    assert digest == "6fd604a06cdc797bc149b4447ce630e11cb70c612b77d846c49954dd35fe4de9"


def test_every_step_says_what_was_recorded(golden):
    assert golden.meta == format_1.META
    assert golden.ending == format_1.ENDING
    assert tuple(golden.notes) == format_1.NOTES
    assert golden.damage == []
    assert list(golden) == [step for step, _ in format_1.steps()]
    assert golden.token_text(75) == " token 75"


def test_every_row_keeps_its_bits(golden):
    source = golden.source
    for step, rows in format_1.steps():
        number = step.number
        for tensor in (Tensor.QUERIES, Tensor.OUTPUT):
            for site, held in rows.of(tensor).items():
                assert same(source.site_rows(number, site, tensor, None), held)
        for tensor in (Tensor.KEYS, Tensor.VALUES):
            for layer, held in rows.of(tensor).items():
                first = step.cache_step(layer).first_cell
                found = source.cells(layer, tensor, first, held.shape[2], None)
                assert same(found, held[0])
        for site, mask in rows.masks.items():
            assert same(source.full_mask(number, site), mask)
            assert same(source.bias(number, site), rows.biases[site])


def test_numbers_known_by_hand(golden):
    assert golden.overview["elapsed_ns"].tolist() == list(range(1000, 1068))
    assert golden.queries(9, 0)[:, 0].tolist() == [[9, 10], [11, 12], [13, 14], [15, 16]]
    bits = golden.source.cells(0, Tensor.VALUES, 0, 2, 1)
    assert bits.tolist() == [[[213, 214, 215], [216, 217, 218]]]
    assert golden.cache(9, 1).keys[0, :, 0].tolist() == list(range(8, 16))
    assert golden.compared(2).beyond[1, 3, 3] == 2**40
    assert np.isnan(golden.compared(2).reference_max).all()
    assert golden.compared(3) is None
    step, rows = format_1.lane_pass()
    assert golden.source.pass_step("recomputed", 0) == step
    for tensor in Tensor:
        found = golden.source.pass_rows("recomputed", 0, tensor, 0, None)
        assert same(found, rows.of(tensor)[0])


def test_it_holds_one_of_every_kind_of_frame():
    kinds = set(describe(GOLDEN).frames)
    assert kinds == {"META", "ROWS", "STEP", "LANE", "TILE", "PASS", "NOTE", "END", "INDEX"}


def test_what_is_written_today_reads_the_same(tmp_path, golden):
    format_1.write(tmp_path / "a.kvt")
    one, other = read_all(golden), read_all(open_trace(tmp_path / "a.kvt"))
    assert one.keys() == other.keys()
    assert [address for address in one if not same(one[address], other[address])] == []
