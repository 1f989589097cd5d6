"""What a recording needs of the other lanes: told of forwards and steps, it compares them.

"once": one pass over each final token sequence when the run is over. "each": a pass without a
cache after every step, timed, which also finds models whose rows depend on later tokens. The
referee is the recomputed lane one precision up: where both lanes stand equally far from it, they
differ by rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path as FilePath

from torch import Tensor, nn

from kvtrace.errors import TraceError
from kvtrace.files import FileSource
from kvtrace.record.forward import Forward
from kvtrace.record.lanes.each import EachPass
from kvtrace.record.lanes.logits import KeptLogits
from kvtrace.record.lanes.once import LaneSink, OncePass, with_lanes
from kvtrace.record.lanes.tolerance import higher, tolerance
from kvtrace.trace import Lane, Meta, Note, Step, Trace

RECOMPUTED, REFEREE = "recomputed", "referee"

_REPLACED = {
    "input_ids",
    "decoder_input_ids",
    "inputs_embeds",
    "decoder_inputs_embeds",
    "past_key_values",
    "use_cache",
    "position_ids",
    "cache_position",
    "logits_to_keep",
    "decoder_attention_mask",
    "labels",
}


@dataclass(frozen=True, slots=True)
class LaneOptions:
    """Which lanes are computed.

    Attributes:
        mode: "once", "each" or "off".
        referee: Compute the referee too, in one pass at the end.
        keep_rows: Keep every pass, however large.
    """

    mode: str = "once"
    referee: bool = False
    keep_rows: bool = False


@dataclass(slots=True)
class Lanes:
    """The other lanes of one recording.

    Attributes:
        model: The watched model.
        path: The trace file, being written.
        options: Which lanes.
        unwatched: Entered around each pass, so that it is not recorded itself.
    """

    model: nn.Module
    path: FilePath
    options: LaneOptions
    unwatched: Callable[[], AbstractContextManager[None]] = nullcontext
    _logits: KeptLogits = field(default_factory=KeptLogits)
    _extra: Mapping[str, object] = field(default_factory=dict)
    _each: EachPass | None = None
    _arguments_seen: bool = False

    def forward(self, step: int, forward: Forward) -> None:
        """A forward became a step: keep what the trace does not hold of it."""
        if forward.part == "encoder" or self.options.mode == "off":
            return
        if not self._arguments_seen:
            self._arguments_seen = True
            self._extra = _extra(forward)
        self._logits.keep(step, forward.logits)

    def written(self, step: Step, meta: Meta, sink: LaneSink) -> Meta:
        """A step is in the file: compare it at once, in mode "each".

        Returns:
            META, with the lane added when it is new.
        """
        if self.options.mode != "each":
            return meta
        if self._each is None:
            lane = self._lane(meta, RECOMPUTED, "each", meta.model.dtype)
            meta = with_lanes(meta, [lane])
            sink.extend(meta)
            source = FileSource(self.path)
            self._each = EachPass(self.model, source, self._logits, lane, self._extra)
        with self.unwatched():
            self._each.step(step, sink)
        return meta

    def finish(
        self, meta: Meta, sink: LaneSink, on_progress: Callable[[int, int], None] | None = None
    ) -> Meta:
        """The run is over: compute what is still missing.

        Returns:
            META, with the lanes that were added.
        """
        wanted: list[tuple[Lane, str | None]] = []
        if self.options.mode == "once":
            wanted.append((self._lane(meta, RECOMPUTED, "once", meta.model.dtype), None))
        if self.options.referee and self.options.mode != "off":
            dtype = higher(meta.model.dtype)
            wanted.append((self._lane(meta, REFEREE, "once", dtype), dtype))
        again = None if self._each is None else self._each.lane
        if not (wanted or again) or not meta.sites:
            return meta
        if wanted:
            meta = with_lanes(meta, [lane for lane, _ in wanted])
            sink.extend(meta)
        try:
            trace = Trace(FileSource(self.path))
            one = OncePass(
                self.model, trace, self._logits, self._extra, self.options.keep_rows, on_progress
            )
            with self.unwatched():
                if again is not None:
                    one.keep_only(again, sink)
                for lane, upcast in wanted:
                    one.run(lane, sink, dtype=upcast)
        except TraceError as error:
            sink.note(Note("note", f"lanes were not compared: {error}"))
        return meta

    def _lane(self, meta: Meta, name: str, mode: str, dtype: str) -> Lane:
        limit, reason = tolerance(meta.model.dtype, max(1, len(meta.sites)))
        return Lane(name, mode, dtype, limit, reason, "bare")


def _extra(forward: Forward) -> Mapping[str, object]:
    """Arguments that any pass over these tokens needs: an encoder's output, images."""
    takes_decoder = "decoder_input_ids" in forward.arguments
    found: dict[str, object] = {}
    for name, value in forward.arguments.items():
        if value is None or isinstance(value, bool):
            continue
        if name in _REPLACED and not (takes_decoder and name == "input_ids"):
            continue
        if name == "attention_mask" and not takes_decoder:
            continue
        per_token = isinstance(value, Tensor) and value.dim() == 2
        if per_token and not takes_decoder:
            continue
        found[name] = value
    return found
