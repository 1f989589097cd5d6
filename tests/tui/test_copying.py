"""What is copied is what is shown, and the code that is copied gives it again."""

import pytest
from msgspec.structs import replace

import kvtrace
from builders.written import write_trace
from kvtrace.analysis.heads.attention import attention
from kvtrace.errors import UsageError
from kvtrace.trace import Tensor
from kvtrace_tui.desk import moves
from kvtrace_tui.desk.copying import expression, value_at, weight_at, weight_expression
from kvtrace_tui.desk.cursor import View
from kvtrace_tui.panes.rows import RowStore
from kvtrace_tui.panes.views import shown


def _place(trace):
    return replace(moves.start(trace), step=2, layer=1, head=3, row=4, dim=5)


def _on_the_map(trace, cursor, tensor):
    row = cursor.row if tensor in (Tensor.KEYS, Tensor.VALUES) else cursor.query
    return float(shown(RowStore(trace), tensor, cursor).values[row, cursor.dim])


@pytest.mark.parametrize("tensor", list(Tensor))
@pytest.mark.parametrize("view", list(View))
def test_the_number_that_is_copied_is_the_one_on_the_map(trace, tensor, view):
    cursor = replace(_place(trace), view=view)
    assert value_at(cursor, trace, tensor) == _on_the_map(trace, cursor, tensor)


@pytest.mark.parametrize("tensor", list(Tensor))
@pytest.mark.parametrize("view", [View.VALUE, View.RECOMPUTED, View.ABSOLUTE])
def test_the_code_gives_the_number_on_the_map(tmp_path, monkeypatch, trace, tensor, view):
    write_trace(tmp_path / "a b.kvt", trace)
    monkeypatch.chdir(tmp_path)
    opened = kvtrace.open(tmp_path / "a b.kvt")
    cursor = replace(_place(opened), view=view)
    code = expression(cursor, opened, tensor)
    assert eval(code, {"kvtrace": kvtrace}) == _on_the_map(opened, cursor, tensor)


def test_a_relative_difference_has_no_code_and_that_is_said(trace):
    with pytest.raises(UsageError, match="no line of Python"):
        expression(replace(_place(trace), view=View.RELATIVE), trace, Tensor.KEYS)


def test_what_another_lane_lacks_is_not_copied(trace):
    cursor = replace(_place(trace), view=View.RECOMPUTED, lane="referee")
    with pytest.raises(UsageError, match="keys: not recorded in the referee lane"):
        value_at(cursor, trace, Tensor.KEYS)


def test_where_weights_are_listed_the_weight_is_copied(tmp_path, monkeypatch, trace):
    write_trace(tmp_path / "a.kvt", trace)
    monkeypatch.chdir(tmp_path)
    opened = kvtrace.open("a.kvt")
    cursor = _place(opened)
    weight = float(attention(opened, 2, 1, 3).weights[4])
    assert weight_at(cursor, opened) == weight
    assert eval(weight_expression(cursor, opened), {"kvtrace": kvtrace}) == weight
    with pytest.raises(UsageError, match="no row 99"):
        weight_at(replace(cursor, row=99), opened)
