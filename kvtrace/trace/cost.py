"""What one step cost: operations and bytes, cached and recomputed."""

from __future__ import annotations

from msgspec import Struct, field


class Flops(Struct, frozen=True, omit_defaults=True):
    """Floating-point operations by part, multiply-add = 2, full new × seq rectangle.

    Attributes:
        qkv: Projections to queries, keys and values.
        scores: q·kᵀ.
        mix: weights·v.
        output: Projection of the attention output.
        mlp: Feed-forward layers, experts and routers included.
        head: Logits as this model really computed them.
        head_last, head_all: Logits of the last row of each sequence, and of every row: the two
            conventions.
        other: Every other matrix product (rotary tables and the like).
    """

    qkv: int = 0
    scores: int = 0
    mix: int = 0
    output: int = 0
    mlp: int = 0
    head: int = 0
    head_last: int = 0
    head_all: int = 0
    other: int = 0

    @property
    def body(self) -> int:
        """Everything but the head."""
        return self.qkv + self.scores + self.mix + self.output + self.mlp + self.other

    @property
    def total(self) -> int:
        """As computed."""
        return self.body + self.head


class Cost(Struct, frozen=True, omit_defaults=True):
    """What the step cost with the cache, and what the same tokens cost without one.

    Attributes:
        cached: FLOPs of this forward.
        recomputed: FLOPs of a forward over all tokens so far, no cache.
        weight_bytes: Parameters read once.
        cache_read_bytes: Rows attended to that earlier steps wrote; shared ones once.
        cache_written_bytes: Rows written by this step.
        cache_bytes: Memory the cache holds after the step: the live tensors' nbytes.
        uncached_weight_bytes: Parameters that a forward over all tokens so far reads, each once:
            more tokens look up more rows and choose more experts, and what is computed once for a
            sequence is computed again. 0: not known.
    """

    cached: Flops = field(default_factory=Flops)
    recomputed: Flops = field(default_factory=Flops)
    weight_bytes: int = 0
    cache_read_bytes: int = 0
    cache_written_bytes: int = 0
    cache_bytes: int = 0
    uncached_weight_bytes: int = 0
