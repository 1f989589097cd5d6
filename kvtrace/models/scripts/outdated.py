"""Whether code failed because it is written for another transformers than the one that is here."""

from __future__ import annotations

import sys

_LIBRARY = "transformers"


def outdated(error: BaseException) -> str:
    """What to say of an error about a name that transformers does not have; or nothing."""
    if isinstance(error, AttributeError):
        missing = _is_made_of(error.obj)
    else:
        plain = isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError)
        missing = plain and _is_part(getattr(error, "name", None) or "")
    library = sys.modules.get(_LIBRARY)
    if not missing or library is None:
        return ""
    return f"it may be written for another transformers than {library.__version__}"


def _is_made_of(thing: object) -> bool:
    """Whether a class, or that of an object, is one of transformers' or made from one."""
    kind = thing if isinstance(thing, type) else type(thing)
    return any(_is_part(one.__module__) for one in kind.__mro__)


def _is_part(module: str) -> bool:
    return module.partition(".")[0] == _LIBRARY
