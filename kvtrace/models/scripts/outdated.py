"""Whether code failed because it is written for another transformers than the one that is here."""

from __future__ import annotations

import re
import sys
import traceback
from pathlib import Path

from kvtrace.text import message

_LIBRARY = "transformers"
_REPOSITORIES = "transformers_modules"
"""Where transformers puts the code of repositories."""
_USED = re.compile(
    r"'(\w+)' object (?:is not|does not support|has no)|(\w+)\.\w+\(\) (?:got|missing)"
)


def outdated(error: BaseException) -> str:
    """What to say of an error about what transformers does not have, or not any more; or nothing.

    A name that is missing, an object that can't be used as it once could (a cache that was a
    tuple), or a plain list where transformers looks for something else by now (tied weights).
    """
    if isinstance(error, AttributeError):
        plain = isinstance(error.obj, list | tuple | dict)
        missing = _is_made_of(error.obj) or (plain and _raised_inside(error))
    elif isinstance(error, TypeError):
        used = _USED.match(message(error))
        missing = used is not None and _has(used[1] or used[2])
    else:
        plain = isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError)
        missing = plain and _is_part(getattr(error, "name", None) or "")
    library = sys.modules.get(_LIBRARY)
    if not missing or library is None:
        return ""
    said = f"it may be written for another transformers than {library.__version__}"
    return f"{said}: look for a newer revision of the repository" if _brought(error) else said


def _brought(error: BaseException) -> bool:
    """Whether the code was a repository's."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(_REPOSITORIES in Path(frame.filename).parts for frame in frames)


def _raised_inside(error: BaseException) -> bool:
    """Whether a line of transformers' own raised it."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and _is_part(str(frames[-1].f_globals.get("__name__", "")))


def _has(kind: str) -> bool:
    """Whether transformers has made a class of that name."""
    modules = [one for name, one in list(sys.modules.items()) if _is_part(name)]
    return any(_is_made_of(vars(one).get(kind)) for one in modules)


def _is_made_of(thing: object) -> bool:
    """Whether a class, or that of an object, is one of transformers' or made from one."""
    kind = thing if isinstance(thing, type) else type(thing)
    return any(_is_part(one.__module__) for one in kind.__mro__)


def _is_part(module: str) -> bool:
    return module.partition(".")[0] == _LIBRARY
