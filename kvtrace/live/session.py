"""The parent's end of a recording process: start it, ask it, hear from it, see it end.

Never blocks while polling, loads no torch, and leaves neither zombie nor orphan behind. What the
child prints arrives as `Said` events. The steps themselves travel in the trace file.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from kvtrace.live.crash import LastLines
from kvtrace.live.messages import (
    PROTOCOL,
    Command,
    Ended,
    Event,
    Failed,
    Lines,
    Progress,
    Request,
    Said,
    Started,
    Stepped,
    decode,
    encode,
)
from kvtrace.live.pipes import Inlet, Outlet, has_more, wait
from kvtrace.live.pulse import Pulse

START_PATIENCE = 60.0
"""Seconds for a Python interpreter to come up on a very busy machine."""

STOP_PATIENCE = 10.0
"""Seconds for the step under way to finish after a stop."""

END_PATIENCE = 5.0
"""Seconds for the process to go after it said that it is done."""

_LOG_LINE = 4096
_LAST_READS = 100


class Session:
    """One recording process."""

    def __init__(self, request: Request, *, command: Sequence[str] | None = None) -> None:
        """Start it.

        Args:
            request: What to record.
            command: The program to run instead of `python -m kvtrace.live.child`.
        """
        self._request = request
        self._steps: set[int] = set()
        self._last_lines, self._asked_to_stop = LastLines(), False
        self._doing, self._patience, self._heard = "starting", START_PATIENCE, time.monotonic()
        self.finished = False
        self.ending: Ended | None = None
        self.failure: Failed | None = None
        command_read, command_write = os.pipe()
        event_read, event_write = os.pipe()
        output_read, output_write = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*(command or child_command()), str(command_read), str(event_write)],
                stdin=subprocess.DEVNULL,
                stdout=output_write,
                stderr=output_write,
                pass_fds=(command_read, event_write),
                env=_environment(),
                start_new_session=True,
            )
        finally:
            for fd in (command_read, event_write, output_write):
                os.close(fd)
        self._pulse = Pulse(self._process.pid)
        self._commands = Outlet(command_write)
        self._events, self._output = Inlet(event_read), Inlet(output_read)
        self._event_lines, self._output_lines = Lines(), Lines(_LOG_LINE)
        self._commands.send(encode(request))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the recorder."""
        return self._process.pid

    @property
    def output(self) -> str:
        """Path of the trace, as it was asked for."""
        return self._request.output

    @property
    def num_steps(self) -> int:
        """Steps that are in the trace, as far as we heard."""
        return len(self._steps)

    def send(self, name: str, token: int = -1) -> None:
        """Ask for something: "run", "pause", "step", "stop", or "choose" with a token id."""
        self._asked_to_stop = self._asked_to_stop or name == "stop"
        self._commands.send(encode(Command(name, token)))

    def wait(self, seconds: float) -> None:
        """Until there is something to poll, or the time is over."""
        if not self.finished:
            wait([self._events, self._output], seconds)

    def poll(self) -> list[Event]:
        """What happened since the last call, oldest first; the last one is Ended or Failed."""
        if self.finished:
            return []
        self._commands.send()
        gone = self._process.poll() is not None
        events = self._hear()
        if gone:
            self._reap()
            events += self._last_words()
            self.finished = True
        elif self._hangs():
            self._kill()
            if not self._said_goodbye:
                text = f"{self._doing}: no progress for {self._patience:.0f} s, given up."
                events.append(self._fail(3, text))
        return events

    def close(self, patience: float = STOP_PATIENCE) -> None:
        """Stop after the step under way, then the hard way; safe to call twice.

        Args:
            patience: Seconds to wait for an orderly end.
        """
        if not self.finished:
            self.send("stop")
            until = time.monotonic() + patience
            while not self.finished and time.monotonic() < until:
                self.wait(0.1)
                self.poll()
        if not self.finished:
            self._kill()
            self._process.wait()
            self.poll()
        for end in (self._commands, self._events, self._output):
            end.close()

    # -- hearing ---------------------------------------------------------------------------

    def _hear(self) -> list[Event]:
        events = self._output_events(self._output.read())
        for line in self._event_lines.feed(self._events.read()):
            event = decode(line)
            if event is None or isinstance(event, (Request, Command)):
                shown = line[:200].decode("utf-8", "backslashreplace")
                events.append(Said(f"not understood: {shown}", "garbage"))
                continue
            self._note(event)
            events.append(event)
        return events

    def _note(self, event: Event) -> None:
        """Keep what the end of the process is judged by."""
        self._heard = time.monotonic()
        match event:
            case Started(protocol) if protocol != PROTOCOL:
                self._kill()
                self.failure = Failed(3, "parent and recorder are different versions of kvtrace.")
            case Started():
                self._patience = 0.0
            case Progress():
                self._doing, self._patience = event.text, event.patience
            case Stepped():
                self._steps.add(event.number)
                self._doing, self._patience = "recording", 0.0
            case Ended():
                self.ending, self._patience = event, END_PATIENCE
            case Failed():
                self.failure, self._patience = event, END_PATIENCE
            case _:
                pass

    def _output_events(self, chunk: bytes) -> list[Event]:
        events: list[Event] = []
        for line in self._output_lines.feed(chunk.replace(b"\r", b"\n")):
            if text := line.decode("utf-8", "backslashreplace").rstrip():
                self._last_lines.add(text)
                events.append(Said(text, "output"))
        return events

    def _last_words(self) -> list[Event]:
        """What is left in the pipes of a process that ended, and how it ended."""
        events: list[Event] = []
        for _ in range(_LAST_READS):
            if not has_more([self._events, self._output]):
                break
            events += self._hear()
        events += self._output_events(self._output_lines.end() + b"\n")
        if not self._said_goodbye:
            events.append(self._obituary())
        return events

    # -- ending ----------------------------------------------------------------------------

    def _reap(self) -> None:
        """See it end, with whatever it started: its process group is its own."""
        self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def _hangs(self) -> bool:
        """Neither a message nor any CPU time for longer than what it does may take."""
        if not self._patience:
            return False
        if self._pulse.felt() and not self._said_goodbye:
            self._heard = time.monotonic()
        return time.monotonic() - self._heard > self._patience

    @property
    def _said_goodbye(self) -> bool:
        return self.ending is not None or self.failure is not None

    def _fail(self, code: int, text: str) -> Failed:
        self.failure = Failed(code, text)
        return self.failure

    def _obituary(self) -> Event:
        """How it ended, when it ended without a last word."""
        status = self._process.returncode
        if self._asked_to_stop and not self._steps:
            self.ending = Ended("stopped", "before anything was recorded", "")
            return self.ending
        if self._asked_to_stop and status == -signal.SIGKILL:
            text = "killed, for the step under way took too long to wait for"
            self.ending = Ended("stopped", text, self.output)
            return self.ending
        kept = ""
        if self._steps:
            kept = f" {len(self._steps)} steps are safe: kvtrace open {self.output}."
        if status == -signal.SIGKILL:
            return self._fail(3, f"the recorder was killed (9), {_likely()}.{kept}")
        what = f"exited with status {status}"
        if status < 0:
            known = -status in list(signal.Signals)
            name = signal.Signals(-status).name if known else "an unknown signal"
            what = f"was ended by {name} ({-status})"
        last = self._last_lines.told()
        return self._fail(3, f"the recorder {what} while {self._doing}.{kept}{last}")


def _likely() -> str:
    """What kills processes that nobody ended: the limit on their seconds, or too little memory."""
    allowed = resource.getrlimit(resource.RLIMIT_CPU)[1]
    taken = resource.getrusage(resource.RUSAGE_CHILDREN)
    if allowed != resource.RLIM_INFINITY and taken.ru_utime + taken.ru_stime > allowed - 1:
        return f"for it took the {allowed} s of CPU time that it is allowed (ulimit -t)"
    return "likely for memory"


def child_command() -> list[str]:
    """The recorder, without the current directory on its path: `./json.py` is not the json."""
    return [sys.executable, "-P", "-X", "faulthandler", "-m", "kvtrace.live.child"]


def _environment() -> dict[str, str]:
    """Ours, with threads that leave a core for the screen and sleep instead of spinning."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    defaults = {
        "OMP_NUM_THREADS": str(max(1, (cores or 1) - 1)),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8:backslashreplace",
    }
    return defaults | dict(os.environ)
