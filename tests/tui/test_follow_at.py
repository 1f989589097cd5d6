"""A run that is being recorded, opened at a place: there it stays."""

from types import SimpleNamespace

from builders import Shape, synthetic_trace
from kvtrace_tui.app import KvtraceApp
from kvtrace_tui.follow import Follower
from kvtrace_tui.panes import all_panes


class Run:
    """A recorder that goes on."""

    def poll(self):
        return []

    def send(self, name, token=None):
        pass

    def close(self):
        pass


async def test_a_place_asked_for_is_not_left_for_the_newest_step():
    trace = synthetic_trace(Shape(decode=6))
    for at, step in ((SimpleNamespace(step=0, layer=2, head=1, sequence=0), 0), (None, 6)):
        follower = Follower(lambda: trace, Run(), trace)
        app = KvtraceApp(follower, "run.kvt", all_panes, at)
        async with app.run_test(size=(160, 45)) as pilot:
            await pilot.pause(0.5)
            assert app.screen.desk.cursor.step == step
            if at is not None:
                assert (app.screen.desk.cursor.layer, app.screen.desk.cursor.head) == (2, 1)
