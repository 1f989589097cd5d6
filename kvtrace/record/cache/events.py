"""Changes of caches between forwards, as the trace tells them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from kvtrace.trace import CacheEvent


def joined(events: Iterable[CacheEvent]) -> tuple[CacheEvent, ...]:
    """Events, with what happened to both halves of an encoder-decoder cache told once."""
    out: list[CacheEvent] = []
    for event in events:
        last = out[-1] if out else None
        alike = last is not None and (last.kind, last.order) == (event.kind, event.order)
        if last is None or not alike or not set(last.layers).isdisjoint(event.layers):
            out.append(event)
            continue
        out[-1] = replace(
            last,
            layers=last.layers + event.layers,
            lengths_before=last.lengths_before + event.lengths_before,
            lengths_after=last.lengths_after + event.lengths_after,
        )
    return tuple(out)
