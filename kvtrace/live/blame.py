"""What went wrong in code that is not ours, in one line: where, what, and whose it is.

Knows exceptions and tracebacks only; errors of our own speak for themselves.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from types import ModuleType

from kvtrace.errors import KvtraceError, MemoryLimitError, RecordError
from kvtrace.paths import OURS, line_of
from kvtrace.text import message

_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "cannot allocate memory")

_NEEDED = ("torch", "transformers", "tokenizers", "safetensors")

_EVERYBODYS = ("torch", "transformers", "accelerate")
_PYTHON = Path(traceback.__file__).resolve().parent


def error_of(error: BaseException, script: ModuleType | None) -> KvtraceError:
    """The error to end with.

    Args:
        error: Anything that was raised while recording.
        script: The user's own module, whose line is named rather than a library's.
    """
    if isinstance(error, KvtraceError):
        return error
    if is_out_of_memory(error):
        return MemoryLimitError(
            f"out of memory while recording ({first_line(error)}); "
            "use fewer tokens, a smaller model, or --dtype bfloat16"
        )
    if isinstance(error, ModuleNotFoundError) and error.name in _NEEDED:
        return RecordError(
            f"recording needs {error.name}, which this Python does not have; `pip install "
            f"{error.name}` (traces open without it)"
        )
    from kvtrace.models.scripts.outdated import outdated

    where = place(error, script)
    if isinstance(error, SystemExit):
        return RecordError(f"{where}: the model's code ended the recorder (exit {error.code})")
    notes = (str(note).strip().partition("\n")[0] for note in getattr(error, "__notes__", ()))
    said = [first_line(error), *notes, *filter(None, [outdated(error)])]
    return RecordError(f"{where}: {type(error).__name__}: {'; '.join(said)}")


def is_out_of_memory(error: BaseException) -> bool:
    """Python's, torch's, or an allocator's way of saying it."""
    text = message(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)
    )


def place(error: BaseException, script: ModuleType | None) -> str:
    """`file.py:line` of the deepest call in the user's script, in somebody's code, or at all."""
    stack = traceback.extract_tb(error.__traceback__)
    if not stack:
        return "the recorder"
    own = getattr(script, "__file__", None)
    mine = [call for call in stack if own and _same(call.filename, own)]
    somebodys = [call for call in stack if not _is_librarys(call.filename)]
    call = (mine or somebodys or list(stack))[-1]
    return line_of(call)


def first_line(error: BaseException) -> str:
    """Of its message; its name when it has none."""
    lines = message(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _is_librarys(file: str) -> bool:
    """Whether a file is of Python, of ours, or of what everybody's model goes through."""
    path = Path(file)
    if "site-packages" in path.parts:
        package = path.parts[path.parts.index("site-packages") + 1]
        return package in _EVERYBODYS
    return not path.is_absolute() or OURS in path.parents or _PYTHON in path.parents


def _same(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()
