"""The way out of calls that were read: heads put together, numbered, named, and handed on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.attention.kinds import kind_of, number_in
from kvtrace.record.flow.calls.call import aside, unrepeated
from kvtrace.record.flow.calls.crossing import Crossing, Place
from kvtrace.record.flow.calls.encoders import Encoders
from kvtrace.record.flow.calls.kvheads import blank, by_weights
from kvtrace.record.flow.calls.loops import Loop, Waiting, together
from kvtrace.record.flow.calls.loops_of_texts import abreast, are_texts
from kvtrace.record.flow.calls.newest_first import oldest_first
from kvtrace.record.flow.calls.prove import FlowCall
from kvtrace.record.flow.calls.relief import Relief
from kvtrace.record.flow.modes.modules import Forwards, Frame
from kvtrace.record.modes import unseen_by_modes

Sink = Callable[[AttentionCall], None]


@dataclass(slots=True)
class Outlet:
    """Where calls that were read go.

    Attributes:
        forwards: Gives the modules that run.
        sink: Takes finished calls.
        loop: Calls with one head, or one text, that wait for the next one.
        told: Calls that were told of lately, where somebody wants to know; else None.
        counts: Calls of each module that were handed on in this step.
        relief: Knows which modules share a place.
        encoders: Knows functions that encode a text, and attend in no module of their own.
    """

    forwards: Forwards
    sink: Sink
    loop: Loop = field(default_factory=Loop)
    told: list[AttentionCall] | None = None
    counts: Counter[str] = field(default_factory=Counter)
    relief: Relief = field(default_factory=Relief)
    encoders: Encoders = field(default_factory=Encoders)
    _crossing: Crossing = field(default_factory=Crossing)
    # kv heads of modules, where rows that are not all zero told
    _kv_heads: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def rehearsal(self) -> Iterator[list[AttentionCall]]:
        """Keep the calls seen meanwhile in a list instead of telling of them."""
        calls: list[AttentionCall] = []
        self.flush()
        sink, self.sink = self.sink, calls.append
        try:
            yield calls
        finally:
            self.flush()
            self.sink = sink

    def take(self, call: FlowCall, path: str, output: Tensor) -> None:
        """Hand a call on, now or with the other heads of its loop.

        Args:
            call: It.
            path: Module it belongs to.
            output: The tensor the model goes on with.
        """
        frame = self.forwards.stack[-1] if self.forwards.stack else None
        with unseen_by_modes():
            path = self.encoders.around(path, call)
        if frame is not None:
            frame.attended += 1
        one = Waiting(call.detached, path, None if frame is None else type(frame.module))
        several = call.queries.shape[1] > 1 and call.texts < 2
        alone = several or call.weights is not None
        if alone or not self.loop.fits(one):
            self.flush()
        if self.forwards.two_sided or self.encoders:
            with unseen_by_modes():
                self._sort(path, frame, call)
        if alone:
            self._emit(one)
        else:
            self.loop.add(one, output)

    def _sort(self, path: str, frame: Frame | None, call: FlowCall) -> None:
        """Learn from a call of a model of two sides which of its texts it attends to."""
        kind = "encoder" if path in self.encoders else kind_of(path, two_sided=True)
        if kind == "encoder":
            self._crossing.encoded(call)
        elif kind == "self":
            self._crossing.attended(Place(path, self.counts[path], frame), call)

    def flush(self) -> None:
        """Hand on the heads, or texts, that wait."""
        waiting = self.loop.take()
        if not waiting:
            return
        with aside(waiting[0].call.output):
            if are_texts(waiting):
                found = [abreast(waiting)]
            elif waiting[0].call.queries.shape[1] > 1:
                found = waiting
            else:
                found = [together(waiting, self._around(waiting[0].path))]
            for one in found:
                self._emit(replace(one, call=unrepeated(one.call)))

    def _around(self, path: str) -> str:
        """The innermost known module above heads.0."""
        above = path.rpartition(".")[0]
        running = [frame.path for frame in self.forwards.stack if above.startswith(frame.path)]
        return running[-1] if running and running[-1] != path else above

    def _emit(self, one: Waiting) -> None:
        call = self._with_kv_heads(oldest_first(one.call), one.path)
        path = self.relief.place(one.path, call, self.counts)
        each = max(call.queries.shape[0], call.keys.shape[0])
        number = self.counts[path]
        self.counts[path] += 1
        with unseen_by_modes():
            kind = self._kind(path, number, call)
        told = AttentionCall(
            module=path,
            call=number,
            layer=number_in(path, number),
            kind=kind,
            queries=_of_each(call.queries, each),
            keys=_of_each(call.keys, each),
            values=_of_each(call.values, each),
            output=call.output,
            scale=call.scale,
            softcap=call.softcap,
            visible=call.visible,
            bias=call.bias,
            sinks=call.sinks,
            level=call.level,
            code=call.place,
            scores_code=call.scored if call.scored != call.place else "",
            rule=call.rule,
            mixes=call.mixes,
        )
        if self.told is not None:
            self.told.append(told)
        self.sink(told)

    def _with_kv_heads(self, call: FlowCall, path: str) -> FlowCall:
        """The call; where its rows are all zero, with as many kv heads as its module has."""
        heads, told = call.queries.shape[1], call.keys.shape[1]
        known = self._kv_heads.get(path)
        if told in (known, 1):
            return call
        with aside(call.output):
            zeros = blank(call.keys, call.values)
        if not zeros:
            self._kv_heads[path] = told
            return call
        if known is None and told == heads:
            stack = self.forwards.stack
            module = next((one.module for one in reversed(stack) if one.path == path), None)
            weights = () if module is None else module.parameters()
            known = by_weights(weights, heads, (call.keys.shape[3], call.values.shape[3]))
        if known is None or told % known:
            return call
        group = told // known
        return replace(call, keys=call.keys[:, ::group], values=call.values[:, ::group])

    def count(self, calls: Sequence[AttentionCall]) -> None:
        """Somebody else told of these calls of the forward that runs."""
        for call in calls:
            self.counts[call.module] = max(self.counts[call.module], call.call + 1)

    def _kind(self, path: str, number: int, call: FlowCall) -> str:
        """By the module's name, unless the call belies it, else by what it was given."""
        if path in self.encoders:
            return "encoder"
        kind = kind_of(path, two_sided=self.forwards.two_sided)
        if kind == "cross" and self._crossing.is_only_named(path, call):
            return "self"
        return "cross" if kind == "self" and self._crossing.is_found(path, number) else kind


def _of_each(rows: Tensor, sequences: int) -> Tensor:
    """Rows of every sequence: beams that share an encoder's may be given those once."""
    return rows if rows.shape[0] == sequences else rows.expand(sequences, -1, -1, -1)
