"""One pane in a terminal of its own, as lines of text."""

from __future__ import annotations

from kvtrace.errors import TraceError
from kvtrace_tui.desk.cursor import Cursor

AT = Cursor(step=4, layer=1, head=3, row=6, dim=5)


async def drawn(one_pane, pane, trace, cursor=AT, size=(60, 24)):
    app = one_pane(pane)
    async with app.run_test(size=size) as pilot:
        pane.show(trace, cursor)
        await pilot.pause()
        return app.lines()


def row_of(lines, name):
    return next(line for line in lines if line.strip().startswith(name))


def damage_from(trace, cell):
    """No cell from this one on can be read any more."""
    source, real = trace.source, trace.source.cells

    def cells(layer, tensor, first, count, head):
        if first + count > cell:
            raise TraceError(f"memory.kvt: cell {cell} is damaged.")
        return real(layer, tensor, first, count, head)

    source.cells = cells
