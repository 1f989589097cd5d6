"""The whole app over a trace, its screen as lines of text, and keys for it."""

from __future__ import annotations

import time

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


async def until(pilot, condition, seconds=120):
    """Wait until it is true; else the screen as it is."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            rows = "\n".join(row.rstrip() for row in shown(pilot.app))
            raise AssertionError(f"it never came true; the screen:\n{rows}")
        await pilot.pause(0.02)
