"""A program in a real pseudo-terminal: keys in, bytes out, and how it left the terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE_S = 60.0
_MAIN = "import sys; from kvtrace.cli import main; sys.exit(main())"


@dataclass
class Terminal:
    """Runs one program; always `close` it."""

    argv: list[str]
    columns: int = 100
    lines: int = 32
    environ: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None
    errors: Path | None = None  # where stderr goes; None: to the terminal
    output: bytes = b""

    def __post_init__(self):
        self.fd, slave = pty.openpty()
        self.resize(self.columns, self.lines, tell=False)
        self.before = termios.tcgetattr(slave)
        names = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH")
        environ = {name: os.environ[name] for name in names if name in os.environ}
        environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"} | self.environ
        with nullcontext(slave) if self.errors is None else self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                self.argv,
                stdin=slave,
                stdout=slave,
                stderr=errors,
                env=environ,
                cwd=self.folder,
                start_new_session=True,
            )
        self.slave = slave

    def resize(self, columns, lines, *, tell=True):
        """Another size, as a terminal emulator does it."""
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        if tell:
            self.process.send_signal(signal.SIGWINCH)

    def read(self, seconds=0.05):
        """What it wrote meanwhile."""
        until, got = time.monotonic() + seconds, b""
        while (left := until - time.monotonic()) > 0:
            ready, _, _ = select.select([self.fd], [], [], left)
            if not ready:
                break
            try:
                chunk = os.read(self.fd, 1 << 16)
            except OSError:
                break
            if not chunk:
                break
            got += chunk
        self.output += got
        return got

    def wait_for(self, text, patience=PATIENCE_S):
        """Until the text was written since the start or the last `forget`."""
        wanted = text.encode() if isinstance(text, str) else text
        until = time.monotonic() + patience
        while wanted not in self.output:
            assert time.monotonic() < until, f"{wanted!r} never came: {self.output[-2000:]!r}"
            assert self.poll() is None, f"it ended with {self.poll()}: {self.output[-2000:]!r}"
            self.read()

    def settle(self, quiet=0.25):
        """Until it wrote nothing for a while."""
        while self.read(quiet):
            pass

    def forget(self):
        """What was written so far."""
        self.settle()
        self.output = b""

    def keys(self, text):
        """Type."""
        os.write(self.fd, text.encode())

    def poll(self):
        """The exit code as a shell says it; None while it runs."""
        code = self.process.poll()
        return code if code is None or code >= 0 else 128 - code

    def ended(self, patience=PATIENCE_S):
        """Wait for its end."""
        until = time.monotonic() + patience
        while self.poll() is None:
            assert time.monotonic() < until, f"it goes on: {self.output[-500:]!r}"
            self.read()
        self.read(0.1)
        return self.poll()

    @property
    def restored(self):
        """Whether the terminal is as it was: modes, screen, cursor, mouse."""
        same = termios.tcgetattr(self.slave)[:6] == self.before[:6]
        left = self.output.rfind(b"\x1b[?1049l") > self.output.rfind(b"\x1b[?1049h")
        shown = self.output.rfind(b"\x1b[?25h") > self.output.rfind(b"\x1b[?25l")
        mouse = self.output.rfind(b"\x1b[?1000l") >= self.output.rfind(b"\x1b[?1000h")
        return same and left and shown and mouse

    def close(self):
        """End it, whatever it does."""
        if self.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.fd)
        os.close(self.slave)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def kvtrace(*arguments, **more):
    """The command line in a terminal."""
    return Terminal([sys.executable, "-c", _MAIN, *map(str, arguments)], **more)
