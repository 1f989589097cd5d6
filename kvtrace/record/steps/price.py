"""What a step cost: FLOPs in both lanes, bytes of weights and cache."""

from __future__ import annotations

from kvtrace.record.cache.bytes import held_bytes, step_bytes
from kvtrace.record.cache.step import LedgerStep
from kvtrace.record.cache.stores import Stores
from kvtrace.record.capture.forward import Forward
from kvtrace.record.capture.tokens.positions import Positions
from kvtrace.record.cost import CostMeter, Measured
from kvtrace.trace import Cost


def price(
    meter: CostMeter, forward: Forward, entry: LedgerStep, where: Positions, stores: Stores
) -> Cost:
    """Of a forward that became a step.

    Args:
        meter: Knows what the model multiplies.
        forward: It.
        entry: What it did to the caches.
        where: Positions of its tokens.
        stores: The cache layers.
    """
    past = max([row[0] for row in where if row], default=0)
    logits = None if forward.logits is None else tuple(forward.logits.shape)
    if forward.part_of is not None and forward.part_of.whole is not None:
        meter.measure(forward.part_of.whole)  # learns what a token costs
    alike = None if forward.batch is None else forward.batch.attended
    sizes = Measured(forward.calls, forward.sequences, forward.new, max(0, past), logits, alike)
    cached, recomputed = meter.measure(sizes)
    weights, uncached_weights = meter.weight_bytes(sizes)
    read, written = step_bytes(entry.groups, stores)
    held = held_bytes(forward, entry.caches) + entry.own_bytes
    return Cost(cached, recomputed, weights, read, written, held, uncached_weights)
