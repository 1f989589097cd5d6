"""Functions that encode a text: what attends in them, in no module of an encoder, is its attention.

A helper that encoder and decoder share attends for both: who called it tells which one it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from kvtrace.record.flow.calls.crossing import is_ordered
from kvtrace.record.flow.calls.prove import FlowCall
from kvtrace.record.flow.modes.places import callers

_ENCODES = re.compile(
    r"(?!.*(?:dec(?:ode|_|$)|image|visi|video|audio))_?(?:\w+_)?enc(?:oder?)?(?:_\w*)?"
)
"""Names of such functions, and of methods: `encode`, `_run_encoder`, `encode_source`, `enc`."""

_FRAMES = 48
"""Of Python and of ours that are looked at."""


@dataclass(slots=True)
class Encoders:
    """Those that were met."""

    _found: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self._found)

    def __contains__(self, path: str) -> bool:
        return path in self._found

    def around(self, path: str, call: FlowCall) -> str:
        """The path of a call; the name of a function that encodes, where it attends by itself.

        Args:
            path: Of the module that attends, or the name of a function.
            call: What it did.
        """
        sees_all = _sees_all(call)
        if not sees_all and not self._found:
            return path
        running = list(callers(_FRAMES))
        if path and path not in {whole for _, whole in running[:1]}:
            return path  # the path of a module tells more than who calls it
        named = next((whole for name, whole in running if _ENCODES.fullmatch(name)), "")
        if not named or not (sees_all or named in self._found):
            return path
        self._found.add(named)
        return named


def _sees_all(call: FlowCall) -> bool:
    """Whether each row of a text sees the same ones, later ones too, as no decoder lets them."""
    return call.queries.shape[2] == call.keys.shape[2] > 1 and not is_ordered(call)
