"""Commands in processes of their own, and looking at them while they run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from kvtrace.errors import KvtraceError
from kvtrace.files import open_trace

SECONDS = 120

SLOW_MODEL = """
import time, torch
from transformers import GPT2Config, GPT2LMHeadModel

class Slow(GPT2LMHeadModel):
    def forward(self, *args, **named):
        time.sleep(0.03)
        return super().forward(*args, **named)

def make():
    torch.manual_seed(0)
    return Slow(GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=300, n_positions=4096))

def raises():
    class Broken(Slow):
        def forward(self, *args, past_key_values=None, **named):
            if past_key_values is not None and past_key_values.get_seq_length() > 3:
                raise ValueError("no more\\x1b[2J\\nsecond line")
            return super().forward(*args, past_key_values=past_key_values, **named)
    print("said before it broke")
    return Broken(make().config)

def prints():
    import os, sys
    print("said on stdout"); print("said on stderr", file=sys.stderr)
    os.system("echo said by a shell"); os.write(1, b"said\\x1b[2J raw\\n")
    return make()

def stuck():
    while True:
        time.sleep(0.01)
"""


def environment(**more: str) -> dict[str, str]:
    """Ours, without a terminal and with one thread."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return {**kept, "OMP_NUM_THREADS": "1", "TERM": "dumb", **more}


def start(*arguments: object, cwd: Path, **options) -> subprocess.Popen[str]:
    """`kvtrace ARGUMENTS`, running."""
    command = [sys.executable, "-c", "import sys, kvtrace.cli; sys.exit(kvtrace.cli.main())"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=cwd,
        env=options.pop("env", environment()),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a process, once it is over."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    return process.returncode, out, err


def run(*arguments: object, cwd: Path, **options) -> tuple[int, str, str]:
    """`kvtrace ARGUMENTS`, to its end."""
    return finish(start(*arguments, cwd=cwd, **options))


def steps_in(path: Path) -> int:
    """Steps that can be read from a trace now; 0 while there is none."""
    with contextlib.suppress(KvtraceError):
        return len(open_trace(path))
    return 0


def wait_for(condition, seconds: float = SECONDS) -> None:
    """Until it is true."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def recorder_of(process: subprocess.Popen[str]) -> int:
    """Process id of the recorder that a command started."""
    found: list[int] = []

    def there() -> bool:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        found[:] = [int(child) for child in children]
        return bool(found)

    wait_for(there)
    return found[0]


def is_gone(pid: int) -> bool:
    """Whether a process is over; one that nobody reaped counts as over."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


def kill_after_steps(process: subprocess.Popen[str], path: Path, steps: int, pid: int, number: int):
    """Send a signal once a trace has some steps."""
    wait_for(lambda: steps_in(path) >= steps)
    os.kill(pid, signal.Signals(number))
