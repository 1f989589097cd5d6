"""Reads what attended in a pass: the raw calls of level 1 and those that were followed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import compress

from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.attention.facts import ModuleFacts, facts
from kvtrace.record.capture.attention.kinds import is_two_sided, kind_of
from kvtrace.record.capture.attention.masks import MaskReader
from kvtrace.record.capture.attention.read import read
from kvtrace.record.capture.running import Followed, Pass, RawCall, module_of
from kvtrace.record.flow import FlowWatch

Found = tuple[tuple[AttentionCall, ...], tuple[int, ...]]
"""Calls, and the updates of caches before each."""


class Reader:
    """Of one model.

    Attributes:
        facts: What is known of its modules, by their identity.
        seen: Paths of those that attended.
        odd: Paths of those that did so over another batch than the model's.
        hidden: Paths of those that were handed no rows to attend to.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self.facts: dict[int, ModuleFacts] = {}
        self.seen: set[str] = set()
        self.odd: set[str] = set()
        self.hidden: dict[str, None] = {}
        self._across: set[str] = set()
        self._names = names
        self._two_sided = is_two_sided(names.values())

    def calls(self, one: Pass, part: str, flow: FlowWatch | None) -> Found:
        """The calls of a pass; those of one module are numbered.

        Args:
            one: It.
            part: Of the model: "model" or "encoder".
            flow: What follows the data flow; it need not follow what asked for its attention.
        """
        raws = [raw for raw in one.calls if not isinstance(raw, Followed)]
        found = list(self._read(raws, part))
        asked = {call.module for call, _ in found}
        if flow is not None:
            flow.asked(asked)
        followed = (raw for raw in one.calls if isinstance(raw, Followed))
        found += [(raw.call, raw.before) for raw in followed if raw.call.module not in asked]
        self.seen.update([call.module for call, _ in found])
        return tuple([call for call, _ in found]), tuple([before for _, before in found])

    def fitting(self, found: Found, sequences: int, new: int) -> Found:
        """Those over the model's own batch and text.

        Args:
            found: All of them.
            sequences: Rows of the model's batch.
            new: Tokens in, per sequence.
        """
        calls, before = found
        self._across |= {call.module for call in calls if _is_across(call, new)}
        fits = [
            call.queries.shape[0] == sequences and call.module not in self._across for call in calls
        ]
        if all(fits):
            return found
        odd = {call.module for call, fit in zip(calls, fits, strict=True) if not fit}
        self.odd |= odd - self._across
        return tuple(compress(calls, fits)), tuple(compress(before, fits))

    def _read(self, raws: list[RawCall], part: str) -> Iterator[tuple[AttentionCall, int]]:
        """Those that asked for their attention, with the updates before each."""
        counts: dict[int, int] = {}
        masks = MaskReader()
        for raw in raws:
            module = module_of(raw)
            key = id(module)
            if key not in self._names:
                continue
            number = counts.get(key, 0)
            counts[key] = number + 1
            known = self.facts.get(key)
            if known is None:
                path = self._names[key]
                kind = kind_of(path, two_sided=self._two_sided)
                kind = "encoder" if part == "encoder" and kind != "cross" else kind
                known = self.facts[key] = facts(module, path, len(self.facts), kind)
            call = read(known, raw, number, masks)
            if call is None:
                self.hidden[known.path] = None
            else:
                yield call, raw[4]


def _is_across(call: AttentionCall, new: int) -> bool:
    """Whether each token attends on its own, to what layers made of it: tokens stand as heads."""
    heads, rows = call.queries.shape[1:3]
    kv_heads, seq = call.keys.shape[1:3]
    return call.kind == "self" and heads == kv_heads == new > max(rows, seq)
