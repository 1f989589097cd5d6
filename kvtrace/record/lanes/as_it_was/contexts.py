"""What a model is told besides its arguments: by globals of its code that are set for each call.

Engines leave there which slot each new token goes to, and what the sequences are: a first call's is
gone when a lane runs. Knows objects of somebody's own classes, those of a thread, and
dictionaries, whose contents change from call to call.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

from msgspec.structs import replace
from torch import Tensor, nn

from kvtrace.record.lanes.as_it_was.code import functions_of
from kvtrace.record.lanes.given.first_call import FirstCall
from kvtrace.record.lanes.given.told import Told
from kvtrace.record.lanes.paths import Path
from kvtrace.record.whose import LIBRARIES, package_of

_MOST = 64
"""Objects that are looked at."""

_NUMBERS = 65536

Name = tuple[str, str]
"""A module of Python, and a global of it."""


class Contexts:
    """Looks at them before each call."""

    def __init__(self, model: nn.Module) -> None:
        """Find the globals that the code of a model can reach."""
        self._spaces = _spaces(model)
        self._names: list[Name] | None = None
        self._told = Told()
        self._now: Mapping[str, object] = {}
        self._first: dict[Name, Any] = {}

    def look(self) -> None:
        """A call is about to be made."""
        if not self._spaces:
            return
        if self._names is None:
            self._names = list(self._found())
        there = dict(self._there(self._names))
        now = {
            _field(name, field): value
            for name, one in there.items()
            for field, value in _held(one).items()
        }
        if not self._first:
            self._first = {name: _copied(one) for name, one in there.items()}
        self._now = now

    @property
    def there(self) -> bool:
        """Whether there is any such thing."""
        return bool(self._first)

    def became(self, step: int) -> None:
        """The call became this step."""
        if self._now:
            self._told.keep(step, self._now)

    def of(
        self, paths: Sequence[Path], call: FirstCall, tokens: Tensor
    ) -> Mapping[Name, Mapping[str, object]]:
        """What one call with whole paths would be told.

        Args:
            paths: They.
            call: The first one.
            tokens: Of the paths, [paths, rows].

        Raises:
            CannotExtendError: No rule says what it is for more tokens.
        """
        fields = {
            _field(name, field): value
            for name, one in self._first.items()
            for field, value in one.items()
        }
        owner = call.ids.partition(".")[0]
        ids = {owner: call.arguments[owner]}
        first = replace(call, arguments={**ids, **fields}, parameters={}, rows=())
        told = self._told.of(paths, first)
        kept = {name: one for name, one in fields.items() if name not in told}
        longer = tokens.shape[1] > call.new
        whole = replace(first, arguments={**ids, **kept}).replayed(tokens) if longer else kept
        whole = {**whole, **told}
        return {
            name: {field: whole[_field(name, field)] for field in one}
            for name, one in self._first.items()
        }

    @contextmanager
    def told(self, found: Mapping[Name, Mapping[str, object]]) -> Iterator[None]:
        """Inside, the globals are told this; afterwards they are what they were."""
        there = [(_held(one), found[name]) for name, one in self._there(list(found))]
        before = [dict(held) for held, _ in there]
        try:
            for held, fields in there:
                held.clear()
                held.update(fields)
            yield
        finally:
            for (held, _), fields in zip(there, before, strict=True):
                held.clear()
                held.update(fields)

    def _found(self) -> Iterator[Name]:
        """Before the first call: names stay, what they stand for may be made anew each time."""
        for module, space in self._spaces.items():
            for name, value in list(space.items()):
                if not name.startswith("__") and _is_told(value):
                    yield module, name

    def _there(self, names: Sequence[Name]) -> Iterator[tuple[Name, Any]]:
        for module, name in names[:_MOST]:
            value = self._spaces[module].get(name)
            if _is_told(value):
                yield (module, name), value


def _held(value: Any) -> dict[str, Any]:
    """What an object holds, or a dictionary."""
    return value if isinstance(value, dict) else vars(value)


def _field(name: Name, field: str) -> str:
    """One name for it, in which no word of a file's name is taken for one of the field's."""
    return f"{field} {hash(name):x}"


def _copied(one: object) -> dict[str, object]:
    """Attributes as they are: what a call writes to afterwards is another matter."""
    return {
        field: copy.copy(value) if isinstance(value, list | dict | set) else _small(value)
        for field, value in _held(one).items()
    }


def _small(value: object) -> object:
    """A copy of a tensor that is no cache and no table, else the thing itself."""
    small = isinstance(value, Tensor) and value.numel() <= _NUMBERS
    return value.clone() if isinstance(value, Tensor) and small else value


def _is_told(value: object) -> bool:
    if type(value) is dict:
        return 0 < len(value) <= _MOST and all(isinstance(name, str) for name in value)
    if isinstance(value, (type, FunctionType, ModuleType, nn.Module, Tensor)):
        return False
    theirs = package_of(type(value)) not in LIBRARIES and not callable(value)
    own = isinstance(value, threading.local) or theirs
    return own and bool(getattr(value, "__dict__", None))


def _spaces(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Globals of the files that its classes are written in, and of functions these call."""
    spaces = (one.__globals__ for one in functions_of(model))
    return {str(one.get("__name__")): one for one in spaces}
