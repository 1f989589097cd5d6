"""Somebody's own script, run untouched and recorded: `python -m kvtrace.live.script WISHES …`.

Runs in a process of its own, as `__main__`, with its arguments, its path and its streams. What it
raises is shown as Python would, without our frames; its exit code is ours. Knows no screen.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import sys
import threading
import types
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvtrace.errors import KvtraceError, UsageError
from kvtrace.live.elsewhere import CHILDREN, WORTH_S, exec_is_said, spent
from kvtrace.live.raised import is_runpys, show
from kvtrace.paths import shown
from kvtrace.text import safe
from kvtrace.units import byte_size, counted

LARGE = 256 << 20
"""Bytes of a trace that is said to be large."""


def main(arguments: Sequence[str]) -> int:
    """Run a script as the command line wishes; its exit code.

    Args:
        arguments: Wishes as JSON, then the script or module and what it is given.
    """
    wishes: Mapping[str, Any] = json.loads(arguments[0])
    words = list(arguments[1:])
    from kvtrace.record import record

    home, here, children = os.getpid(), Path.cwd(), spent()
    own = _module if wishes["module"] else _script
    try:
        recording = record(
            wishes["output"],
            recompute=wishes["recompute"],
            force=wishes["force"],
            tokenizer=_Found(),
            referee=wishes.get("referee", False),
            keep_rows=wishes["keep_rows"],
        )
        with _on_cpu(wanted=wishes["cpu"]), _kept_main(), exec_is_said(_say):
            prepared = own(words)
            code = _run(recording, prepared, on_cpu=wishes["cpu"])
    except KvtraceError as error:
        _say(str(error))
        return error.exit_code
    if os.getpid() != home:
        return code  # a fork of the script that has ended: it recorded nothing
    for line in told(recording.report, here):
        _say(line)
    if not recording.report.traces and spent() - children > WORTH_S:
        _say(CHILDREN)
    if wishes.get("list"):
        paths = [str(one.path) for one in recording.report.traces]
        Path(wishes["list"]).write_text(json.dumps(paths), encoding="utf-8")
    return code


def _run(recording: Any, prepared: Callable[[], object], *, on_cpu: bool) -> int:
    """Their code inside of the recording; its exit code."""
    before = frozenset(threading.enumerate())
    try:
        with recording:
            prepared()
            _join(before)
    except SystemExit as error:
        return _exit_code(error)
    except KeyboardInterrupt as error:
        show(error)
        return 130
    except BaseException as error:
        if issubclass(type(error), KvtraceError):  # theirs may lie about their class
            raise
        show(error)
        if not on_cpu:
            _advise(error)
        return 1
    return 0


def _advise(error: BaseException) -> None:
    """Say what may help a program that did not come to its end here."""
    from kvtrace.models.scripts.mistakes import gpu_remedy

    if remedy := gpu_remedy(error):
        _say(f"it asks for a GPU, and there is none: {remedy}")


def _script(words: list[str]) -> Callable[[], object]:
    """A file as Python itself would run it."""
    path = Path(words[0]).absolute()  # a script may go elsewhere, and ask where it lies
    sys.argv = words
    _at_home(path.resolve().parent)
    main_module = types.ModuleType("__main__")
    main_module.__file__ = str(path)
    main_module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main_module

    def run() -> None:
        code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
        exec(code, main_module.__dict__)

    return run


def _module(words: list[str]) -> Callable[[], object]:
    """A module as `python -m` would run it."""
    sys.argv = words
    _at_home(Path.cwd())

    def run() -> None:
        try:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        except ImportError as error:
            if is_runpys(error):  # there is no such module; `python -m` says it in one line, too
                raise UsageError(f"run -m {words[0]}: {error}") from None
            raise

    return run


def _at_home(folder: Path) -> None:
    """Modules are looked for in the program's folder first."""
    from kvtrace.models.scripts.neighbours import come_first

    sys.path.insert(0, str(folder))
    come_first(folder)


@contextlib.contextmanager
def _kept_main() -> Iterator[None]:
    """Afterwards `__main__` is this module again."""
    before = sys.modules["__main__"]
    try:
        yield
    finally:
        sys.modules["__main__"] = before


def _on_cpu(*, wanted: bool) -> contextlib.AbstractContextManager[None]:
    if not wanted:
        return contextlib.nullcontext()
    from kvtrace.models.scripts.on_cpu import cuda_means_cpu

    return cuda_means_cpu(pretend=True)


def _join(others: Container[threading.Thread]) -> None:
    """Their threads may still be generating: the interpreter would wait for them, too.

    Threads of a pool wait for work until they are told to end, as the interpreter tells them.
    """
    told: list[Callable[[], object]] = getattr(threading, "_threading_atexits", [])
    while told:
        told.pop()()
    for thread in threading.enumerate():
        if thread not in others and not thread.daemon:
            thread.join()


class _Found:
    """The tokenizer that the script has lying about, looked for when the first text is wanted."""

    def __init__(self) -> None:
        self._decode: Callable[[int], str] | None = None
        self._looked = False

    def __call__(self, token: int) -> str:
        if not self._looked:
            self._looked = True
            from kvtrace.models.scripts.found_tokenizer import find_tokenizer

            found = find_tokenizer(sys.modules["__main__"], types.SimpleNamespace())
            self._decode = None if found is None else found[0].decode
        if self._decode is None:
            raise LookupError("the script has no tokenizer")  # then the id is shown
        return self._decode(token)


# -- what is shown --------------------------------------------------------------------------------


def _exit_code(error: SystemExit) -> int:
    """What the interpreter would make of it."""
    code = error.code
    if code is None or isinstance(code, int):
        return code or 0
    with contextlib.suppress(OSError):
        print(code, file=sys.stderr)
    return 1


def told(report: Any, here: Path) -> list[str]:
    """What came of the recording: a line for each trace, and what was not seen.

    Args:
        report: Of the recording.
        here: Where the user started the script, wherever it has gone.
    """
    lines = [line for one in report.traces for line in (_line(one, here), *_large(one, here))]
    if not lines:
        lines.append(f"nothing was recorded: {_instead(report)}")
    elif report.said:
        lines.append("; ".join(report.said))
    return lines


def _line(one: Any, here: Path) -> str:
    steps = counted(one.steps, "step")
    texts = counted(one.texts, "prompt")
    compared = f", compared with {' and '.join(one.lanes)}" if one.lanes else ", not compared"
    unseen = f"; not seen: {len(one.unseen)} ({one.unseen[0]})" if one.unseen else ""
    size = byte_size(one.path.stat().st_size)
    path = shown(Path(one.path), here)
    places = f"{counted(one.sites, 'place')} of attention"
    return (
        f"{one.model}: {steps} from {texts}, {places}{compared}{unseen}. "
        f"{size} in {path}; see it with: kvtrace open {path}"
    )


def _large(one: Any, here: Path) -> list[str]:
    """That a trace is larger than people expect, and how the next one is not."""
    size = one.path.stat().st_size
    if size < LARGE:
        return []
    each = byte_size(size // max(one.steps, 1))
    return [
        f"{shown(Path(one.path), here)} is large: {byte_size(size)}, {each} for each of "
        f"{counted(one.steps, 'step')}, as every row that attention computes is kept. To record "
        'less, let the script make fewer steps, or put `with kvtrace.record("run.kvt"):` around '
        "the calls that matter"
    ]


def _instead(report: Any) -> str:
    """What was seen instead of attention."""
    if report.silent:
        calls = ", ".join(
            f"{name} ({counted(count, 'call')} with tokens)"
            for name, count in report.silent.items()
        )
        return f"no attention was seen in {calls}: recurrent, or not in a form kvtrace can follow"
    if report.said:
        return "; ".join(report.said)
    if report.others:
        calls = ", ".join(
            f"{name} ({counted(count, 'call')})" for name, count in list(report.others.items())[:4]
        )
        return f"modules were called, but none with token ids: {calls}"
    return "no torch module was called"


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        print(f"kvtrace: {safe(line, 2000)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
