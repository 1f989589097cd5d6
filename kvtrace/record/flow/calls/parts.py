"""What was heard of one attention call: functions, and which of them are its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.flow.modes.route import Numbers, Route, numbers_of


class Note(NamedTuple):
    """A function that was heard.

    Attributes:
        path: Of the module that called it.
        function: It.
        args, named: What it was given.
        out: What it gave back.
        versions: Changes in place of the tensors it was given and gave back.
    """

    path: str
    function: Any
    args: tuple[Any, ...]
    named: Mapping[str, Any]
    out: Any
    versions: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the function."""
        return str(getattr(self.function, "__name__", ""))

    @property
    def softmax(self) -> bool:
        """Whether it is a softmax."""
        return self.name == "softmax"


def told(args: Sequence[Any], out: Any) -> tuple[int, ...]:
    """Changes in place of tensors; -1 where they are not counted."""
    try:
        return tuple([one._version for one in (*args, out) if isinstance(one, Tensor)])
    except (AttributeError, RuntimeError):
        return (-1,)


def intact(notes: Sequence[Note]) -> bool:
    """Whether nothing that was heard of was changed in place since."""
    return all(
        -1 not in note.versions and note.versions == told(note.args, note.out) for note in notes
    )


def nbytes_of(notes: Sequence[Note]) -> int:
    """Memory of all that was heard of, each once."""
    found = {
        one.data_ptr(): one.nbytes
        for note in notes
        for one in (*note.args, note.out)
        if isinstance(one, Tensor)
    }
    return sum(found.values())


class Part(Struct, frozen=True):
    """One attention call of a step that will be heard.

    Attributes:
        like: The call before: where it is, what kind, how often it was called.
        route: It went; None: it was one fused call.
        numbers: Of the softmax.
        named: Of the softmax.
        group: Query heads that shared repeated keys, of a fused call.
        places: Of its notes among all.
    """

    like: AttentionCall
    route: Route | None
    places: tuple[int, ...]
    numbers: Numbers = ()
    named: Mapping[str, Any] | None = None
    group: int = 1

    @classmethod
    def fused(cls, call: AttentionCall, place: int, notes: Sequence[Note]) -> Part:
        """Of a fused call."""
        note = notes[place]
        keys = note.args[1] if len(note.args) > 1 else note.named.get("key")
        heads = keys.shape[-3] if isinstance(keys, Tensor) and keys.dim() > 3 else 1
        group = max(1, heads // max(1, call.keys.shape[1]))
        return cls(_bare(call), None, (place,), group=group)

    @classmethod
    def routed(
        cls, call: AttentionCall, route: Route, places: tuple[int, int, int], notes: Sequence[Note]
    ) -> Part:
        """Of a call that went a route."""
        softmax = notes[places[1]]
        numbers = numbers_of(softmax.args, (0,)) or ()
        return cls(_bare(call), route, places, numbers, dict(softmax.named))

    def among(self, notes: Sequence[Note]) -> list[Note]:
        """Its own notes; fewer than it has where not all are there."""
        return [notes[place] for place in self.places if place < len(notes)]


def _bare(call: AttentionCall) -> AttentionCall:
    """A call without its rows."""
    none = call.queries.new_empty(0)
    return replace(call, queries=none, keys=none, values=none, output=none, visible=None)
