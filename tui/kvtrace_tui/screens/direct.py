"""A screen that writes its own lines, and only the cells that changed.

Textual composes every line that a changed widget crosses, cuts it where widgets meet and writes
it whole, at its next tick. Where nothing lies over our parts none of that is needed: what a part
wants to show is compared with what it shows, and the difference goes to the terminal at once.
Anything else (another layout, a notice over it, a part that is new) is left to Textual, and what
the terminal shows counts as unknown from then on.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from textual._compositor import CompositorUpdate
from textual.geometry import Size
from textual.screen import UPDATE_PERIOD, Screen

from kvtrace_tui.drawing.patch import patch
from kvtrace_tui.panes.lined import Lined


class Written(CompositorUpdate):
    """A frame that is text already."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The same for Rich."""
        yield Segment(self._text)

    def render_segments(self, console: Console) -> str:
        """What goes to the terminal."""
        return self._text


class DirectScreen(Screen[None], inherit_bindings=False):
    """Holds parts that are `Lined`."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn_at = 0.0
        self._painting: set[Lined] = set()
        self._whole = True

    def draw_now(self, parts: Iterable[Lined]) -> None:
        """Write what changed; when the last frame was just now, with Textual's next one."""
        wanted = set(parts)
        if not wanted:
            return
        soon = perf_counter() - self._drawn_at < UPDATE_PERIOD
        if soon or self._awaits_textual() or not self._write(wanted):
            for part in wanted:
                part.refresh()

    def _awaits_textual(self) -> bool:
        """Whether Textual has something of its own to do first, or is to draw nothing."""
        return (
            not self.is_current
            or self._layout_required
            or self._scroll_required
            or self._repaint_required
            or self._whole
            or self in self._dirty_widgets
            or self.app._batch_count > 0
        )

    def _write(self, parts: set[Lined]) -> bool:
        """Write parts that nothing covers; False: that can't be told, and nothing was written."""
        visible = self._compositor.visible_widgets
        if self.app.is_inline or any(one not in visible for one in parts):
            return False
        if not all(isinstance(one, Lined) or one is self for one in visible):
            return False
        corners: list[tuple[Lined, tuple[int, int]]] = []
        for part in parts:
            region, clip = visible[part]
            if region.size != part.size or not clip.contains_region(region):
                return False
            corners.append((part, (region.x, region.y)))
        console = self.app.console
        written: list[str] = []
        for part, corner in corners:
            lines = part.lines()
            written.append(patch(corner, part.painted, lines, console))
            part.painted = lines
            self._painting.add(part)
        text = "".join(written)
        if text:
            self.app._display(self, Written(text))
        self._drawn_at = perf_counter()
        return True

    def _refresh_layout(self, size: Size | None = None, scroll: bool = False) -> None:
        """Parts are about to move: none of them shows what it showed."""
        self._forget()
        super()._refresh_layout(size, scroll)

    def _forget(self) -> None:
        """From here on, Textual draws; its next frame may be any part of the screen."""
        self._whole = True
        for part in self._painting:
            part.painted = None
        self._painting.clear()

    def _compositor_refresh(self) -> None:
        """Textual's tick: our own frame where it is enough, else Textual's."""
        dirty = {one for one in self._dirty_widgets if isinstance(one, Lined)}
        ours = bool(dirty) and len(dirty) == len(self._dirty_widgets)
        if ours and not self._whole and self.is_current and self._write(dirty):
            self._dirty_widgets.clear()
            self._compositor._dirty_regions.clear()
            return
        self._forget()
        super()._compositor_refresh()
        self._whole = not self.is_current
        self._drawn_at = perf_counter()
