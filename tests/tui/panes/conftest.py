import pytest
from textual.app import App
from textual.geometry import Region

from kvtrace_tui.drawing.depth import Depth
from kvtrace_tui.panes.pane import Moved


class OnePane(App):
    """A terminal that shows one pane and keeps what it says."""

    def __init__(self, pane):
        super().__init__()
        self.pane, self.moves = pane, []
        pane.depth = Depth.TRUE

    def compose(self):
        yield self.pane

    def on_moved(self, message: Moved):
        self.moves.append(dict(message.changes))

    def lines(self):
        width, height = self.pane.size
        return [strip.text for strip in self.pane.render_lines(Region(0, 0, width, height))]


@pytest.fixture
def one_pane():
    return OnePane
