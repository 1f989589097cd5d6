"""The whole app over a trace, its screen as lines of text, and keys for it."""

from __future__ import annotations

from kvtrace_tui.app import KvtraceApp
from kvtrace_tui.follow import Follower
from kvtrace_tui.panes import all_panes


def app_of(trace, live=None, opener=None):
    follower = Follower(opener or (lambda: trace), live, trace)
    return KvtraceApp(follower, "a.kvt", all_panes)


def shown(app):
    """The screen as text, line by line."""
    strips = app.screen._compositor.render_strips()
    return [strip.text if hasattr(strip, "text") else "".join(s.text for s in strip)
            for strip in strips] or [""]  # fmt: skip


async def press(pilot, *keys):
    for key in keys:
        await pilot.press(key)
    await pilot.pause()
