"""Follows a recording without a screen: progress on a terminal, one line when it is done."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from kvtrace import units
from kvtrace.cli.shared.signals import Interrupted, as_exceptions
from kvtrace.errors import (
    KvtraceError,
    MissingError,
    OutputExistsError,
    RecordError,
    TraceError,
    TrustError,
    UsageError,
    WriteError,
)
from kvtrace.live.messages import Ended, Event, Failed, Progress, Request, Said, Stepped, Tried
from kvtrace.live.session import Session
from kvtrace.text import safe

_TICK = 0.2
_BY_CODE: dict[int, type[KvtraceError]] = {
    kind.exit_code: kind
    for kind in (
        RecordError,
        UsageError,
        TraceError,
        MissingError,
        OutputExistsError,
        WriteError,
        TrustError,
    )
}


def follow(
    request: Request, *, debug: bool = False, on_tried: Callable[[Tried], None] | None = None
) -> Ended:
    """Record, and return when the trace is closed.

    Args:
        request: What to record.
        debug: Also print what the libraries print.
        on_tried: Told of each way of driving that was tried, no line of progress in its way.

    Raises:
        KvtraceError: What the recorder gave up with, its exit code included.
        Interrupted: A signal; the trace was closed after the step under way.
    """
    line = StatusLine(debug=debug)
    with as_exceptions(), Session(request) as session:
        try:
            while not session.finished:
                session.wait(_TICK)
                for event in session.poll():
                    line.show(event)
                    if on_tried is not None and isinstance(event, Tried):
                        line.clear()
                        on_tried(event)
        except Interrupted as signal:
            session.close()
            line.clear()
            print(f"kvtrace: stopped ({signal}); {_kept(session)}", file=sys.stderr)
            raise
        finally:
            line.clear()
    ending = ending_of(session)
    if ending.reason == "stopped":
        raise RecordError(f"{ending.text}; {_kept(session)}")
    return ending


def ending_of(session: Session) -> Ended:
    """How a finished session ended.

    Raises:
        KvtraceError: It failed.
    """
    if session.failure is not None:
        raise error_of(session.failure)
    if session.ending is None:
        raise RecordError("the recorder was stopped before it had recorded anything")
    return session.ending


def error_of(failure: Failed) -> KvtraceError:
    """The recorder's error, as if it had happened here."""
    error = _BY_CODE.get(failure.code, RecordError)(failure.text)
    if failure.details:
        error.add_note(f"in the recorder:\n{failure.details}")
    return error


def _kept(session: Session) -> str:
    if not (number := session.num_steps):
        return "nothing was recorded"
    are = "is" if number == 1 else "are"
    return f"{units.counted(number, 'step')} {are} in {safe(session.output)}"


class StatusLine:
    """One line on a terminal's stderr that says what is being done; nothing elsewhere."""

    def __init__(self, *, debug: bool) -> None:
        self._debug = debug
        self._terminal = sys.stderr.isatty()
        self._drawn = False

    def show(self, event: Event) -> None:
        """Say what an event means."""
        match event:
            case Progress(text, share):
                percent = "" if share is None else f" {share:.0%}"
                self._draw(f"{text}{percent}")
            case Stepped(number):
                self._draw(f"step {number}")
            case Said(text, "kvtrace"):
                self._print(text)
            case Said(text):
                if self._debug:
                    self._print(f"| {text}")
            case _:
                pass

    def clear(self) -> None:
        """Leave no trace of the line."""
        if self._drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        self._drawn = False

    def _draw(self, text: str) -> None:
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{safe(text)[:width]}", end="", file=sys.stderr, flush=True)
            self._drawn = True

    def _print(self, text: str) -> None:
        self.clear()
        print(safe(text, 1000), file=sys.stderr, flush=True)


def size_of(path: str) -> int:
    """Bytes of a trace; 0 when it is gone."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0
