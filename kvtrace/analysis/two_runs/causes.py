"""What usually makes two runs of one model differ as they do: no cache need be to blame."""

from __future__ import annotations

from kvtrace.analysis.checks.report import Finding

_OTHER_WEIGHTS = "Other weights (another checkpoint, seed or conversion)"

_CAUSES = {
    "POSITION-EMBEDDING": f"{_OTHER_WEIGHTS}, another scale or norm of the embedding, or positions "
    "that are embedded otherwise.",
    "CONTENT": f"{_OTHER_WEIGHTS} or another norm here, or other rows in the cache.",
    "UPSTREAM": "Something before this layer differs: the weights or the activation of an MLP, a "
    "norm, the residual, a layer that keeps a state.",
    "SCALE": "Another softmax scale, or weights that are scaled here.",
    "SCORE-BIAS": "Other slopes (ALiBi), other relative biases, or positions that count otherwise.",
    "SCORE-NONLINEAR": "Another softcap, temperature, clamp or sink, or none in one of the runs.",
    "HEAD-MAP": "Weights converted with heads in another order, or kv heads that are expanded "
    "otherwise.",
    "MASK": "The runs were given other masks, or build them otherwise.",
    "MASK-FUTURE": "The new run applies no causal mask here.",
    "WINDOW": "The window of the new run is larger, or is not applied.",
    "EVICTED-EARLY": "The window of the new run is smaller, or its cache is cropped or drops rows.",
    "PAD-VISIBLE": "The new run is given no mask of the padding, or does not use it.",
    "LENGTH-DEPENDENT-POSITIONS": "Another length, base or scaling of the rotary tables.",
}

TABLES = "the base or the scaling of the rotary tables differs"
"""Said of queries that are turned by no number of positions."""

_TABLES = "Another base (rope_theta), scaling or number of rotated features in the config."


def cause(found: Finding) -> str:
    """In a sentence.

    Args:
        found: What the new run looks like beside the old one.
    """
    if found.name == "POSITION-ROPE" and TABLES in found.evidence:
        return _TABLES
    return _CAUSES.get(found.name, found.kind.cause)
