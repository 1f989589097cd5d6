"""Steps of code that has no module to call, or calls a method other than `forward`.

Such code is known by what it does: it looks token ids up in a table, then it attends. A step
begins with a look-up, and ends when ids are looked up again after attention was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kvtrace.record.ambient.called import StepFunction, callers, made_by, theirs
from kvtrace.record.ambient.tables import FRAMES, place_of, self_of
from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.replaced.entrances import is_asking
from kvtrace.record.capture.running import Followed, Pass, passes
from kvtrace.record.capture.symbolic import is_written_down
from kvtrace.record.capture.watch import Watch
from kvtrace.record.driving.ways.roles import signature_of
from kvtrace.record.lanes.passes.recompute import Recomputer
from kvtrace.record.modes import Beneath
from kvtrace.record.processes.local import address


class Functions(nn.Module):
    """Stands for code without a module."""


class Steps(Protocol):
    """What begins and ends steps: a recording."""

    @property
    def watch(self) -> Watch | None:
        """The watcher of its model."""

    @property
    def again(self) -> Recomputer | None:
        """How lanes compute its tokens again; None: none are computed."""


class Implicit:
    """The steps of one recording, by look-ups and attention.

    Attributes:
        begins_at_once: A step begins with the look-up, not with the first attention: there is a
            module, whose cache the first attention may already have changed.
        by_parts: It begins later all the same, with the first part that is called: ids may be
            looked up for the model itself.
        lookups: How often ids were looked up.
        begins: Is told that a step begins.
    """

    def __init__(
        self, recording: Steps, name: str, *, begins_at_once: bool, by_parts: bool = False
    ) -> None:
        """No step yet.

        Args:
            recording: Whose steps they are.
            name: What the model's own forward calls its ids.
            begins_at_once: See there.
            by_parts: See there.
        """
        self.begins_at_once = begins_at_once
        self.by_parts = by_parts
        self.lookups = 0
        self.begins: Callable[[], None] = lambda: None
        self._name = name
        self._recording = recording
        self._ids: Tensor | None = None
        self._in: int = 0
        self._table: int | None = None
        self._open: Pass | None = None
        self._function = StepFunction()
        self._frames: list[FrameType] = []
        self._beside: dict[str, object] = {}
        self._read: Tensor | None = None

    @property
    def under_way(self) -> bool:
        """Whether a step has begun and is not over."""
        return self._open is not None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What runs inside is another model's; the step under way goes on afterwards."""
        one, running = self._open, passes()
        place = next((n for n, each in enumerate(running) if each is one), None)
        if one is None or place is None:
            yield
            return
        del running[place]
        try:
            yield
        finally:
            running.insert(place, one)

    def looked_up(self, ids: Tensor, table: int) -> None:
        """Token ids were looked up, or positions.

        Args:
            ids: [sequences, new].
            table: Address of what they were looked up in.
        """
        self.lookups += 1
        if self._open is not None and self._open.calls:
            self.close()
        known = self._table in (self._in, None)
        better = self._ids is None or (known and _counts(self._ids) and not _counts(ids))
        better = better or (not known and table == self._table)
        better = better or (self.by_parts and table == self._in)  # nothing came of the others
        if better and self._open is None:
            self._ids, self._in = ids, table
        if self._open is None and not self.by_parts:
            self._function.looked_up(ids)
            if self.begins_at_once:
                self._begin()

    def part_called(self, rows: int) -> None:
        """A part of the model is called: with a row for each id, it begins a step.

        Args:
            rows: Given to it.
        """
        if self._open is None and self._ids is not None and self._ids.numel() == rows:
            self._function.looked_up(self._ids)
            self._begin()

    def given_rows(self, model: nn.Module, arguments: Mapping[str, object]) -> None:
        """The model itself is called within the step, with what was made of the ids.

        Args:
            model: It.
            arguments: What it is given, by name.
        """
        again = self._recording.again
        if self._open is not None and not self._open.calls and again is not None:
            again.given_rows(model, arguments)

    def attended(self, call: AttentionCall) -> None:
        """An attention call outside of any module that is watched."""
        if self._open is None:
            if self._ids is None:
                return
            self._begin()
        self._function.attended()
        if self._open is not None:
            self._open.calls.append(Followed(call, len(self._open.updates)))

    def close(self) -> None:
        """The step under way is over, if it attended."""
        one, self._open, ids, self._ids = self._open, None, self._ids, None
        frames, self._frames = self._frames, []
        watch = self._recording.watch
        if one is None or watch is None or ids is None:
            return
        if self._table is None and ids.shape[1] > 1 and not _counts(ids):
            self._table = self._in  # a single id would not tell tokens from positions
        found = self._function.found()
        if found is not None and (again := self._recording.again) is not None:
            name, snapshot, outside = found
            if outside is None:
                again.also(name, snapshot)
            else:
                again.instead(snapshot, outside.as_before)
        given = self._function.given()
        if self.begins_at_once:
            given = made_by(frames)  # the method may keep its cache in a variable
        encoded = bool(one.calls) and all(
            isinstance(each, Followed) and each.call.kind == "encoder" for each in one.calls
        )
        if encoded:
            self._read = ids.clone()
            self._function = StepFunction()  # what encodes is not what decodes
        part = "encoder" if encoded else "model" if one.calls else ""
        watch.end_step({**self._beside, self._name: ids, **given}, part)

    def _begin(self) -> None:
        watch = self._recording.watch
        if watch is not None and self._ids is not None:
            self.begins()
            self._frames = theirs(callers(FRAMES)) if self.begins_at_once else []
            self._beside = self._source(watch.model)
            self._beside |= _beside(watch.model, self._frames, self._ids)
            self._open = watch.begin_step({**self._beside, self._name: self._ids})

    def _source(self, model: nn.Module) -> dict[str, object]:
        """What its forward would be given for its encoder, which ran before the step."""
        takes = signature_of(model).of("source")
        return {} if self._read is None or not takes else {takes[0].name: self._read}


class Lookups(Beneath):
    """Tells of ids that are looked up in a table of vectors."""

    def __init__(self, tell: Callable[[Tensor, int], None]) -> None:
        super().__init__()
        self._tell = tell

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See one torch function."""
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        looks_up = name in ("__getitem__", "embedding", "index_select")
        if looks_up and isinstance(out, Tensor) and not (is_asking() or is_written_down()):
            found = _ids(name, args, kwargs or {})
            if found is not None:
                self._tell(*found)
        return out


def _ids(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, int] | None:
    """Ids of a look-up, [sequences, new], and the table's address; None: it is something else."""
    table, index = (args[0] if args else kwargs.get("input")), kwargs.get("index")
    if name == "embedding":
        index, table = table, (args[1] if len(args) > 1 else kwargs.get("weight"))
    elif index is None and len(args) > 1:
        index = args[2] if name == "index_select" and len(args) > 2 else args[1]
    if not isinstance(table, Tensor) or table.dim() != 2 or not table.is_floating_point():
        return None
    if isinstance(index, range) or (
        isinstance(index, list) and index and all(type(one) is int for one in index)
    ):
        index = torch.tensor(list(index))
    if not isinstance(index, Tensor) or index.dtype not in (torch.int32, torch.int64):
        return None
    if index.dim() not in (0, 1, 2) or not index.numel():
        return None
    if not address(index):
        return None  # nothing that can be looked at: within vmap, or of no memory
    return (index.reshape(1, -1) if index.dim() < 2 else index), place_of(table)


def _counts(ids: Tensor) -> bool:
    """Whether ids only count on, as positions do."""
    row = ids[0]
    return row.numel() > 1 and bool((row[1:] - row[:-1] == 1).all())


def _beside(model: nn.Module, frames: Iterable[FrameType], ids: Tensor) -> dict[str, object]:
    """What methods that run were given beside ids: tensors, and what its forward can't do without.

    Tensors may be an encoder's rows, and what hides some of them: another text has others.
    """
    needed = [one for one in signature_of(model).parameters if one.required]
    methods = [frame for frame in frames if self_of(frame) is model]
    found: dict[str, object] = {}
    for frame in methods:
        code = frame.f_code
        given = set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
        held = {name: one for name, one in frame.f_locals.items() if name in given}
        names = [one.name for one in needed if one.name in held]
        names += [name for name, one in held.items() if _is_beside(one, ids)]
        found |= {name: held[name] for name in names if name not in found}
    return found


def _is_beside(one: object, ids: Tensor) -> bool:
    return isinstance(one, Tensor) and one.dim() >= 2 and one.shape != ids.shape
