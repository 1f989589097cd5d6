"""The timeline: tokens, marks, sequences, and what could have come next."""

from msgspec.structs import replace
from textual.geometry import Region

from builders import Shape, synthetic_trace
from builders.panes import AT, drawn
from kvtrace.trace import CacheEvent, Sampling, TopLogits, Trace
from kvtrace_tui.panes.timeline import TimelinePane


async def test_the_timeline_names_tokens_step_and_what_could_have_come_next(one_pane):
    trace = synthetic_trace()
    top = TopLogits((2, 3, 8), (2.0, 1.0, 0.0), 2.5)
    trace.source.steps[4] = replace(trace.step(4), top=(top,), chosen=(3,))
    lines = await drawn(one_pane, TimelinePane(), trace, size=(120, 4))
    assert "step 4" in lines[2]
    assert "chose ·red 22.3%" in lines[3]
    assert "·the 60.7%" in lines[3]
    assert "␛[2J 8.2%" in lines[3]
    assert "best leads by 1.00:  ·the 60.7%" in lines[3]  # what was chosen led nothing
    trace.source.steps[4] = replace(trace.step(4), top=(top,), chosen=(2,))
    lines = await drawn(one_pane, TimelinePane(), trace, size=(120, 4))
    assert "chose ·the 60.7%  margin 1.00 over  ·red 22.3%" in lines[3]


async def test_a_token_that_nobody_said_to_be_chosen_was_fed_unless_it_is_the_likeliest(one_pane):
    trace = synthetic_trace()
    following = trace.step(5).tokens[0][0]
    rivals = (following + 1, following)
    trace.source.steps[4] = replace(
        trace.step(4), top=(TopLogits(rivals, (2.0, 1.0), 2.5),), chosen=(None,)
    )
    lines = await drawn(one_pane, TimelinePane(), trace, size=(120, 4))
    assert lines[3].split()[1] == "fed"
    assert "22.3%  best leads by 1.00:" in lines[3]
    trace.source.steps[4] = replace(trace.step(4), top=(TopLogits(rivals[::-1], (2.0, 1.0), 2.5),))
    lines = await drawn(one_pane, TimelinePane(), trace, size=(120, 4))
    assert lines[3].split()[1] == "chose"


async def test_what_a_program_fed_in_its_own_loop_is_not_called_chosen(one_pane):
    trace = synthetic_trace()
    trace.source.meta = replace(trace.meta, sampling=Sampling("caller"))
    top = TopLogits((2, 3, 8), (2.0, 1.0, 0.0), 2.5)
    trace.source.steps[4] = replace(trace.step(4), top=(top,), chosen=(3,))
    lines = await drawn(one_pane, TimelinePane(), trace, size=(120, 4))
    assert "fed ·red 22.3%" in lines[3]


async def test_a_candidate_is_shown_with_its_whole_number_or_not_at_all(one_pane):
    trace = synthetic_trace()
    top = TopLogits((2, 3, 8), (2.0, 1.0, 0.0), 2.5)
    trace.source.steps[4] = replace(trace.step(4), top=(top,), chosen=(2,))
    shown = set()
    for width in range(30, 70, 3):
        line = (await drawn(one_pane, TimelinePane(), trace, size=(width, 4)))[3]
        words = line.split("chose ")[1].replace("·the 60.7%", "")
        shown.add(words.strip())
    assert shown == {"", "·red 22.3%", "·red 22.3%  ␛[2J 8.2%"}


async def test_breakpoints_and_findings_are_marked_where_they_are(one_pane):
    pane = TimelinePane()
    pane.mark([1], [5])
    lines = await drawn(one_pane, pane, synthetic_trace(), replace(AT, step=3), size=(80, 4))
    marks = lines[2][9:]
    assert [marks.index(sign) // 6 for sign in "●▲◆"] == [1, 3, 5]


def parted(trace):
    """Two sequences that are the same until step 3; from there the second has other tokens."""
    for number, step in list(trace.source.steps.items()):
        tokens = step.tokens * 2 if number < 3 else ((3,), (1,))
        trace.source.steps[number] = replace(
            step, tokens=tokens, positions=step.positions * 2, chosen=(None, None)
        )
    return trace


async def test_sequences_have_a_line_each_that_shows_where_they_part(one_pane):
    trace, at = parted(synthetic_trace()), replace(AT, sequence=1)
    lines = await drawn(one_pane, TimelinePane(), trace, at, size=(120, 6))
    assert lines[3][:9].strip() == "B0"
    assert lines[3][9:].rstrip() == "━" * 18 + "─" * 24
    assert lines[4][9:].rstrip() == "━" * 42
    assert "fed ·has" in lines[5]


async def test_what_beams_went_on_with_is_told_where_no_choice_was_recorded(one_pane):
    trace = parted(synthetic_trace())
    took = CacheEvent("reorder", (0,), (8,), (8,), order=(0, 0))
    top = TopLogits((2, 3), (2.0, 1.0), 2.5)
    for number, step in list(trace.source.steps.items()):
        events = (took,) if number == 4 else ()
        trace.source.steps[number] = replace(step, events=events, top=(top, top))

    async def said(step, sequence):
        at = replace(AT, step=step, sequence=sequence)
        return (await drawn(one_pane, TimelinePane(), trace, at, size=(120, 6)))[5]

    heirs = [trace.token_text(row[0]).replace(" ", "·") for row in trace.step(4).tokens]
    assert f"went on with {heirs[0]} {heirs[1]}  best leads" in await said(3, 0)
    assert "nothing went on from here  best leads" in await said(3, 1)
    assert "choice not recorded" in await said(6, 0)
    trace.source.ending = None
    assert "not chosen yet" in await said(6, 0)


async def test_a_chosen_token_beyond_the_recorded_ones_was_no_likelier_than_they(one_pane):
    trace = synthetic_trace()
    top = TopLogits((2, 3, 8), (2.0, 1.0, 0.0), 2.5)
    trace.source.steps[4] = replace(trace.step(4), top=(top,), chosen=(1,))
    lines = await drawn(one_pane, TimelinePane(), trace, size=(120, 4))
    assert f"chose {trace.token_text(1).replace(' ', '·')} ≤8.2%  best leads" in lines[3]


async def test_a_click_on_the_line_of_a_sequence_chooses_it(one_pane):
    app = one_pane(TimelinePane())
    async with app.run_test(size=(120, 6)) as pilot:
        app.pane.show(parted(synthetic_trace()), AT)
        app.lines()
        await pilot.click(offset=(9 + 6 * 5, 4))
        await pilot.pause()
    assert app.moves == [{"step": 5, "sequence": 1}]


async def test_tokens_that_were_given_up_are_crossed_out(one_pane):
    trace = synthetic_trace()
    step = trace.step(1)
    trace.source.steps[1] = replace(step, tokens=((1, 2, 3),), positions=((5, 6, 7),))
    pane = TimelinePane()
    app = one_pane(pane)
    async with app.run_test(size=(120, 4)):
        pane.show(trace, replace(AT, step=2))
        strip = pane.render_lines(Region(0, 0, 120, 1))[0]
    crossed = [segment.text for segment in strip if segment.style and segment.style.strike]
    assert crossed == ["·the", "·red"]


async def test_time_that_was_not_measured_is_not_drawn(one_pane):
    trace = synthetic_trace()
    for number, step in trace.source.steps.items():
        trace.source.steps[number] = replace(step, elapsed_ns=0)
    lines = await drawn(one_pane, TimelinePane(), trace, size=(80, 4))
    assert "not measured" in lines[1]


async def test_a_click_on_a_token_goes_to_its_step(one_pane):
    trace = synthetic_trace()
    for number, step in trace.source.steps.items():
        trace.source.steps[number] = replace(step, tokens=((0,) * step.new,))  # "Anna"
    app = one_pane(TimelinePane())
    async with app.run_test(size=(100, 4)) as pilot:
        app.pane.show(trace, AT)
        app.lines()
        await pilot.click(offset=(9 + 5 * 6, 0))
        await pilot.click(offset=(9 + 6 * 2, 2))
        await pilot.click(offset=(2, 0))
        await pilot.pause()
        assert app.moves == [{"step": 2}, {"step": 2}]


async def test_thousands_of_steps_share_columns_and_keep_their_marks(one_pane):
    trace = synthetic_trace(Shape(layers=1, heads=1, kv_heads=1, dim=2, prompt=1, decode=400))
    pane = TimelinePane()
    pane.mark([399], [])
    lines = await drawn(one_pane, pane, trace, replace(AT, step=0, layer=0, head=0), size=(80, 4))
    assert lines[2].rstrip().endswith("●")
    assert lines[2][9] == "▲"


async def test_the_number_of_a_step_is_never_cut(one_pane):
    trace = synthetic_trace()
    trace.source.steps[12345] = replace(trace.step(6), number=12345, parent=6)
    lines = await drawn(one_pane, TimelinePane(), Trace(trace.source), replace(AT, step=12345))
    assert lines[2].split()[0] == "12345"
    assert lines[2].startswith(" 12345   ")
