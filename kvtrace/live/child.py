"""The recording process: `python -m kvtrace.live.child COMMANDS EVENTS`, two inherited pipes.

Says what happens, obeys between steps, and ends when its parent does. Everything that goes wrong
becomes one `Failed`: the exit code, a line for people, and the traceback for those who ask.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback

from kvtrace.live import blame
from kvtrace.live.messages import PROTOCOL, Ended, Failed, Lines, Request, Started, decode
from kvtrace.live.orders import Orders, Stopped
from kvtrace.live.voice import Voice

NICENESS = 10
"""The screen comes first."""


def main() -> int:
    """Record one request; the exit code is returned."""
    commands, events = (int(text) for text in sys.argv[1:3])
    for fd in (commands, events):
        os.set_inheritable(fd, False)
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    voice = Voice(events)
    voice.say(Started(PROTOCOL))
    request, lines, early = _request(commands)
    if request is None or request.protocol != PROTOCOL:
        voice.say(Failed(3, "the recorder was not asked in a language it knows"))
        return 3
    orders = Orders(lines, paused=request.paused)
    orders.obey_sigterm()
    for line in early:
        orders.hear(line)
    orders.listen(commands)
    return _record(request, voice, orders)


def _record(request: Request, voice: Voice, orders: Orders) -> int:
    """Load and record; whatever is raised ends as an event."""
    from kvtrace.live.recording import Recording

    recording = Recording(request, voice, orders)
    try:
        recording.run()
    except Stopped as stop:
        voice.say(Ended("stopped", str(stop), ""))
        return 143
    except BaseException as error:
        told = blame.error_of(error, recording.script)
        details = "".join(traceback.format_exception(error))
        voice.say(Failed(told.exit_code, recording.as_asked(str(told)), details))
        return told.exit_code
    return 0


def _request(fd: int) -> tuple[Request | None, Lines, list[bytes]]:
    """The first line of the pipe, and what already came after it."""
    lines = Lines()
    while chunk := os.read(fd, 1 << 16):
        if got := lines.feed(chunk):
            first = decode(got[0])
            return (first if isinstance(first, Request) else None), lines, got[1:]
    return None, lines, []


if __name__ == "__main__":
    code = main()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    # threads and exit handlers of the libraries have nothing to say any more, and may hang
    os._exit(code)
