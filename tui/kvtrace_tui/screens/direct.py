"""A screen that writes its own lines, and only the cells that changed.

Textual composes every line that a changed widget crosses, cuts it where widgets meet and writes
it whole, at its next tick. Where nothing lies over our parts none of that is needed: what a part
wants to show is compared with what it shows, and the difference goes to the terminal at once.
Parts that a layout only adds are written in the same way. For anything else (parts that move or
go, a notice over them) Textual paints the whole screen, once.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter
from typing import Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from textual import events
from textual._compositor import CompositorUpdate
from textual.geometry import Region, Size
from textual.screen import UPDATE_PERIOD, Screen
from textual.widget import Widget

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
        self._places: dict[Widget, Region] = {}
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

    def _write(self, parts: set[Lined] | None) -> bool:
        """Write parts that nothing covers; False: that can't be told, and nothing was written."""
        visible = self._compositor.visible_widgets
        if parts is None or self.app.is_inline or any(one not in visible for one in parts):
            return False
        if _lined(visible.keys() - {self}) is None:
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

    def _on_screen_resume(self, event: events.ScreenResume) -> None:
        """Textual lays out and paints a screen that is new to it, then paints it once more."""
        event.prevent_default()
        self._forget()
        super()._on_screen_resume(event)
        if self._painting:
            self._repaint_required = False

    def refresh(
        self,
        *regions: Region,
        repaint: bool = True,
        layout: bool = False,
        recompose: bool = False,
    ) -> Self:
        """Another layout paints what it changes; no more than that is asked for with it."""
        return super().refresh(
            *regions, repaint=repaint and not layout, layout=layout, recompose=recompose
        )

    def _refresh_layout(self, size: Size | None = None, scroll: bool = False) -> None:
        """In a terminal of another size, nothing shows what it showed."""
        if (self.outer_size if size is None else size) != self._compositor.size:
            self._forget()
        super()._refresh_layout(size, scroll)

    def _forget(self) -> None:
        """What the terminal shows is not known: Textual paints all of it next."""
        self._whole = True
        for part in self._painting:
            part.painted = None
        self._painting.clear()

    def _compositor_refresh(self) -> None:
        """Textual's tick: our own frame where it is enough, else Textual's."""
        places = {one: at for one, (at, _) in self._compositor.visible_widgets.items()}
        stay = self._places.items() <= places.items()
        other = _lined({*self._dirty_widgets, *(places.keys() - self._places.keys())})
        self._places = places
        if stay and not self._whole and self.is_current and self._write(other):
            self._dirty_widgets.clear()
            self._compositor._dirty_regions.clear()
            return
        self._forget()
        shown = self._shows_frames()
        if shown:
            self._compositor._dirty_regions.add(self._compositor.size.region)
        super()._compositor_refresh()
        self._whole = not shown
        self._drawn_at = perf_counter()
        painted = _lined(places.keys() - {self})
        if shown and painted is not None:
            for part in painted:
                part.painted = part.lines()
            self._painting.update(painted)

    def _shows_frames(self) -> bool:
        """Whether what is displayed now reaches the terminal."""
        return self.is_current and self.app._running and not self.app._batch_count


def _lined(widgets: Iterable[Widget]) -> set[Lined] | None:
    """The same, where all are parts."""
    parts = {one for one in widgets if isinstance(one, Lined)}
    return parts if len(parts) == len(set(widgets)) else None
