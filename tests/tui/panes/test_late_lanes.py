"""What is compared after a run was shown is seen without a key being pressed."""

from builders import synthetic_trace
from kvtrace.trace import Ending
from kvtrace_tui.desk.cursor import Cursor
from kvtrace_tui.panes.inspector import InspectorPane
from kvtrace_tui.panes.rows import Shelf


async def test_the_inspector_tells_of_lanes_that_came_at_the_end_of_the_run(one_pane):
    trace = synthetic_trace()
    source = trace.source
    late, source.lane_steps, source.ending = source.lane_steps, {}, None
    pane = InspectorPane(Shelf())
    app = one_pane(pane)
    async with app.run_test(size=(60, 24)) as pilot:
        pane.show(trace, Cursor(step=4))
        await pilot.pause()
        assert any("not compared" in line for line in app.lines())
        source.lane_steps, source.ending = late, Ending("length")
        pane.show(trace, Cursor(step=4))
        await pilot.pause()
        assert not any("not compared" in line for line in app.lines())
