from msgspec.structs import replace

from builders import MemorySource, Shape, synthetic_trace
from kvtrace.trace import Meta, ModelCard, Trace
from kvtrace_tui.desk import moves
from kvtrace_tui.desk.cursor import Axis, ColourScale, Cursor, View


def test_the_first_cursor_is_on_the_first_decode_step_and_its_newest_row():
    cursor = moves.start(synthetic_trace(Shape(prompt=5, decode=6)))
    assert (cursor.step, cursor.row, cursor.layer, cursor.head) == (1, 5, 0, 0)


def test_a_trace_of_one_step_starts_on_it():
    assert moves.start(synthetic_trace(Shape(decode=0))).step == 0


def test_an_empty_trace_has_a_cursor_and_every_move_stays_on_it():
    trace = Trace(MemorySource(Meta(ModelCard("empty", "Empty"))))
    cursor = moves.start(trace)
    assert cursor == Cursor()
    for axis in Axis:
        assert moves.along(cursor, trace, axis, 1) == cursor
    assert moves.walk(cursor, trace, 1).layer == 0
    assert moves.to_step(cursor, trace, 7) == cursor


def test_who_follows_a_run_leaves_the_encoder_once_it_has_read():
    trace = synthetic_trace(Shape(layers=2, prompt=5, decode=2))
    encoder = replace(trace.meta.sites[0], kind="encoder")
    trace.source.meta = replace(trace.meta, sites=(encoder, trace.meta.sites[1]))

    def only(number, layer):
        """Of both layers, one attended."""
        step = trace.step(number)
        caches = replace(step.caches[0], layers=(layer,))
        of_one = {"check_error": (0.0,), "check_scale": (1.0,), "nonfinite": (0,)}
        sites = replace(step.sites[0], sites=(layer,), **of_one)
        trace.source.steps[number] = replace(step, caches=(caches,), sites=(sites,))

    only(0, 0)
    only(1, 1)
    only(2, 1)
    reading = replace(moves.start(trace, 0), layer=0)
    followed = moves.to_newest(reading, trace)
    assert (followed.step, followed.layer, followed.row) == (2, 1, 6)
    chosen = replace(followed, step=1, layer=0)  # by the user, to look at it
    assert moves.to_newest(chosen, trace).layer == 0


def test_steps_stop_at_both_ends():
    trace = synthetic_trace(Shape(decode=3))
    cursor = moves.start(trace)
    assert moves.by_steps(cursor, trace, 99).step == 3
    assert moves.by_steps(cursor, trace, -99).step == 0


def test_steps_lost_to_damage_are_passed_over():
    trace = synthetic_trace(Shape(decode=5))
    del trace.source.steps[3]
    cursor = moves.to_step(moves.start(trace), trace, 2)
    assert moves.by_steps(cursor, trace, 1).step == 4
    assert moves.by_steps(moves.to_step(cursor, trace, 4), trace, -1).step == 2
    assert moves.nearest(trace, 3) == 2


def test_the_crosshair_stays_on_its_cell_when_a_window_slides():
    trace = synthetic_trace(Shape(prompt=5, decode=4, window=4))
    cursor = moves.start(trace)
    # step 1 sees cells 2..5, step 2 sees 3..6: cell 4 moves from row 2 to row 1
    cursor = replace(cursor, row=2)
    assert moves.cell_at(cursor, trace) == 4
    after = moves.by_steps(cursor, trace, 1)
    assert (after.row, moves.cell_at(after, trace)) == (1, 4)


def test_the_crosshair_stays_in_range_when_its_cell_is_evicted():
    trace = synthetic_trace(Shape(prompt=5, decode=4, window=4))
    cursor = replace(moves.start(trace), row=0)
    after = moves.by_steps(cursor, trace, 1)
    assert after.row == 0
    assert moves.row_of_cell(after, trace, 2) is None


def test_going_back_to_the_prefill_chooses_its_last_query():
    trace = synthetic_trace(Shape(prompt=5))
    back = moves.by_steps(moves.start(trace), trace, -1)
    assert (back.step, back.query) == (0, 4)
    assert moves.by_steps(back, trace, 1).query == 0


def test_walking_goes_layer_by_layer_and_into_the_next_step():
    trace = synthetic_trace(Shape(layers=2, decode=3))
    cursor, seen = moves.start(trace), []
    for _ in range(5):
        cursor = moves.walk(cursor, trace, 1)
        seen.append((cursor.step, cursor.layer))
    assert seen == [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]
    assert cursor.inside
    assert not moves.by_steps(cursor, trace, -1).inside


def test_walking_back_undoes_walking():
    trace = synthetic_trace(Shape(layers=2, decode=3))
    cursor = moves.walk(moves.start(trace), trace, 1)
    there = moves.walk(moves.walk(cursor, trace, 1), trace, 1)
    back = moves.walk(moves.walk(there, trace, -1), trace, -1)
    assert (back.step, back.layer) == (cursor.step, cursor.layer)


def test_walking_passes_over_layers_that_did_not_attend_in_the_step():
    trace = synthetic_trace(Shape(layers=3, decode=2))
    for number in (1, 2):
        step = trace.step(number)
        decoder = tuple(replace(one, sites=(1, 2)) for one in step.sites if 1 in one.sites)
        trace.source.steps[number] = replace(step, sites=decoder)
    trace = Trace(trace.source)
    cursor, seen = moves.start(trace), []
    for by in (1, 1, 1, -1, -1, -1):
        cursor = moves.walk(cursor, trace, by)
        seen.append((cursor.step, cursor.layer))
    assert seen == [(1, 1), (1, 2), (2, 1), (1, 2), (1, 1), (0, 2)]


def test_walking_stops_at_the_first_and_last_layer_of_the_run():
    trace = synthetic_trace(Shape(layers=2, decode=1))
    end = moves.start(trace)
    for _ in range(9):
        end = moves.walk(end, trace, 1)
    assert (end.step, end.layer) == (1, 1)
    for _ in range(9):
        end = moves.walk(end, trace, -1)
    assert (end.step, end.layer) == (0, 0)


def test_every_axis_stays_inside_the_trace():
    trace = synthetic_trace(Shape(layers=3, heads=4, dim=8, prompt=5, decode=2))
    cursor = moves.start(trace)
    far = {axis: getattr(moves.along(cursor, trace, axis, 999), axis) for axis in Axis}
    assert far == {
        Axis.STEP: 2, Axis.LAYER: 2, Axis.HEAD: 3, Axis.SEQUENCE: 0,
        Axis.QUERY: 0, Axis.ROW: 5, Axis.DIM: 7,
    }  # fmt: skip
    assert all(getattr(moves.along(cursor, trace, axis, -999), axis) == 0 for axis in Axis)


def test_views_palettes_and_scales_come_round():
    cursor = Cursor()
    for expected in (View.RECOMPUTED, View.ABSOLUTE, View.RELATIVE, View.VALUE):
        cursor = moves.next_view(cursor)
        assert cursor.view is expected
    for expected in (ColourScale.LOG, ColourScale.PERCENTILE, ColourScale.LINEAR):
        cursor = moves.next_scale(cursor)
        assert cursor.scale is expected
    assert [moves.next_palette(replace(cursor, palette=p), 3).palette for p in range(3)] == [
        1,
        2,
        0,
    ]


def test_the_lanes_compared_come_round_in_pairs():
    trace = synthetic_trace()
    lane = trace.meta.lanes[0]
    cursor = moves.start(trace)
    assert moves.next_pair(cursor, trace).view is View.ABSOLUTE
    trace.source.meta = replace(trace.meta, lanes=(lane, replace(lane, name="referee")))
    seen = []
    for _ in range(4):
        cursor = moves.next_pair(cursor, trace)
        seen.append((cursor.base, cursor.lane))
    assert seen == [
        ("cached", "referee"),
        ("recomputed", "referee"),
        ("cached", "recomputed"),
        ("cached", "referee"),
    ]
    assert replace(cursor, view=View.ABSOLUTE).shows == "|cached − referee|"


def test_zoom_never_goes_below_fit():
    assert moves.zoomed(Cursor(zoom=0), -1).zoom == 0
    assert moves.zoomed(Cursor(zoom=3), -1).zoom == 2
    assert moves.zoomed(Cursor(zoom=moves.MAX_ZOOM), 1).zoom == moves.MAX_ZOOM


def test_a_prefill_is_first_looked_at_from_its_last_query():
    trace = synthetic_trace(Shape(prompt=5))
    cursor = moves.start(trace, 0)
    assert (cursor.step, cursor.query, cursor.row) == (0, 4, 4)
    assert moves.start(trace, 99).step == 6
