"""What a pass over tokens needs besides them: an encoder's output, images; by text and sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from kvtrace.record.capture.forward import Forward
from kvtrace.record.lanes.paths import Path

MAX_TEXTS = 256
"""Texts whose arguments are kept; the oldest are let go, and not recomputed."""

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


@dataclass(slots=True)
class Extras:
    """Further arguments, by the step that a text begins with."""

    _texts: dict[int, tuple[int, Mapping[str, object]]] = field(default_factory=dict)
    _last: tuple[int, ...] | None = None

    def add(self, step: int, forward: Forward) -> None:
        """A forward became a step: where it begins a text, keep what it was called with."""
        if any(
            update.part == "self" and update.length > update.new_keys.shape[2]
            for update in forward.updates
        ):
            return
        extra = _extra(forward)
        objects = (forward.sequences, *(id(value) for value in extra.values()))
        if objects == self._last:
            return
        self._last = objects
        self._texts[step] = forward.sequences, extra
        while len(self._texts) > MAX_TEXTS:
            del self._texts[next(iter(self._texts))]

    def text(self, path: Path) -> int | None:
        """The step whose arguments go with a path; None: they were let go."""
        before = [step for step in self._texts if step <= path.root]
        return max(before, default=None)

    def of(self, paths: Sequence[Path]) -> Mapping[str, object]:
        """Arguments for paths of one text, in their order."""
        step = self.text(paths[0]) if paths else None
        if step is None:
            return {}
        sequences, extra = self._texts[step]
        rows = [path.row for path in paths]
        if rows == list(range(sequences)) or max(rows) >= sequences:
            return extra
        return {name: _rows(value, rows, sequences) for name, value in extra.items()}


def _rows(value: Any, rows: Sequence[int], sequences: int) -> Any:
    """Some sequences of an argument, where it has one row for each."""
    if isinstance(value, Tensor):
        each = value.dim() > 0 and value.shape[0] == sequences
        return value[list(rows)] if each else value
    if isinstance(value, Mapping):
        picked = {name: _rows(part, rows, sequences) for name, part in value.items()}
        return type(value)(**picked) if type(value) is not dict else picked
    if type(value) in (tuple, list):
        return type(value)(_rows(part, rows, sequences) for part in value)
    return value


def _extra(forward: Forward) -> Mapping[str, object]:
    """Arguments that any pass over these tokens needs."""
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
    given = forward.argument("position_ids")
    if given is not None and given.dim() == 2 and not takes_decoder:
        found["position_ids"] = given  # of the first tokens: those after them go on counting
    elif forward.argument("attention_mask") is not None and not takes_decoder:
        found["position_ids"] = None  # the model counts for itself, padding included
    return found
