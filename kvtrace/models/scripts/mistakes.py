"""What went wrong in the user's own code, in one line with their file and line, and a remedy."""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from kvtrace.errors import KvtraceError, ModelError
from kvtrace.models.scripts.outdated import outdated
from kvtrace.models.spec import Source
from kvtrace.paths import OURS, line_of
from kvtrace.text import message, safe, said_by

T = TypeVar("T")
_GPU = re.compile(r"NVIDIA|CUDA|cuda|\bGPU\b|\bgpu\b")
_ON_CPU = "--cpu maps it to the CPU"
_OTHER_SIZES = "the checkpoint is of a model of other sizes: build the model with those"
_CHECKPOINT = re.compile(r"\.(pth?|ckpt|safetensors|npz|tar|gguf)\b|checkpoint|model.*\.bin\b")
_PYTHON = Path(traceback.__file__).resolve().parent
_TORCH = Path(torch.__file__).resolve().parent


def theirs(source: Source, call: Callable[[], T], *, hint: str = "") -> T:
    """Run the user's code; what it raises becomes one line with their file and line.

    Args:
        source: Where it is from.
        call: The code.
        hint: What else may help, said where no better remedy is known.

    Raises:
        ModelError: It raised.
    """
    try:
        return call()
    except (KeyboardInterrupt, KvtraceError):
        raise
    except BaseException as error:
        raise ModelError(f"{source.name}: {blamed(error, source, hint)}") from error


def blamed(error: BaseException, source: Source, hint: str) -> str:
    """`model.py:12: ValueError: …`: the innermost line of the user's own code."""
    said = said_by(error)
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}: {said}"
    own = _own_frames(error, source)
    if isinstance(error, SystemExit):
        said = f"it called exit({error.code!r}) instead of returning a model"
        if _reads_command(error):
            hint = "it reads arguments of a command line, and there are none: let it do without"
    at_import = bool(own) and own[-1].name == "<module>"
    where = _elsewhere(error, own)
    if own and where:
        said += f" (in {where})"
    if remedy := _remedy(error, source, wants_gpu(error, source), at_import) or hint:
        said += f"; {remedy}"
    place = line_of(own[-1]) if own else where
    return f"{place}: {said}" if place else said


def wants_gpu(error: BaseException, source: Source) -> bool:
    """Whether it failed for want of a GPU: its message, or the line that raised, says so."""
    if isinstance(error, ModelError) and error.__cause__ is not None:
        error = error.__cause__
    own = _own_frames(error, source)
    asked = isinstance(error, AssertionError) and own and _GPU.search(own[-1].line or "")
    return bool(asked or _GPU.search(message(error)))


def gpu_remedy(error: BaseException) -> str:
    """What to do about a program that asked for a GPU where there is none; empty: it did not."""
    if torch.cuda.is_available() or not _GPU.search(message(error)):
        return ""
    return _ON_CPU


def _elsewhere(error: BaseException, own: list[traceback.FrameSummary]) -> str:
    """Where it was raised, if that is in somebody's code that is not in the user's directory."""
    frames = traceback.extract_tb(error.__traceback__)
    last = max((n for n, one in enumerate(frames) if own and one == own[-1]), default=-1)
    inner = frames[last + 1 :]
    theirs_too = [one for one in inner if _is_somebodys(Path(one.filename))]
    return line_of(theirs_too[-1]) if theirs_too else ""


def _is_somebodys(path: Path) -> bool:
    """Whether a file is a person's: not ours, not Python's, not torch's."""
    known = (OURS, _PYTHON, _TORCH)
    return path.is_absolute() and not any(
        one in path.parents and "site-packages" not in path.relative_to(one).parts for one in known
    )


def _own_frames(error: BaseException, source: Source) -> list[traceback.FrameSummary]:
    root = Path(source.place).resolve().parent if source.kind == "file" else Path.cwd()
    linecache.checkcache()
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if _belongs(Path(frame.filename), root)]


def _belongs(path: Path, root: Path) -> bool:
    """Whether a file is the user's, rather than ours or an installed package's."""
    return root in path.parents and OURS not in path.parents and "site-packages" not in path.parts


def _reads_command(error: BaseException) -> bool:
    """Whether it was raised where arguments of a command line are read."""
    return any(
        Path(one.filename).name == "argparse.py"
        for one in traceback.extract_tb(error.__traceback__)
    )


def _remedy(error: BaseException, source: Source, gpu: bool, at_import: bool) -> str:
    """What to do about it, where that is known."""
    if gpu:
        return _ON_CPU
    if isinstance(error, FileNotFoundError):
        what = "a checkpoint" if _CHECKPOINT.search(message(error)) else "a file"
        where = "start kvtrace in the directory from which the script finds it"
        other = "let the factory do without"
        if at_import:
            other = "run the file's definitions only, with --definitions"
        return f"it needs {what} that is not there: {where}, or {other}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _of_package(safe(error.name.partition(".")[0]), source)
    if isinstance(error, EOFError) and not at_import:
        return "it asks for input, and there is no keyboard here: let the factory do without"
    if at_import and not isinstance(error, ImportError):
        return "the file does this when imported: --definitions runs its definitions only"
    sizes = isinstance(error, RuntimeError) and "size mismatch for" in message(error)
    return _OTHER_SIZES if sizes else outdated(error)


def _of_package(name: str, source: Source) -> str:
    """What to do about a package that is not there."""
    if source.kind == "file" and Path(source.place).stem == name:
        return f"the file has the name of the package {name} and hides it: rename the file"
    return f"install {name} next to kvtrace, or start kvtrace where it can be imported"
