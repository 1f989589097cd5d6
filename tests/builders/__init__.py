"""Builders: small, coherent traces made of numpy alone, for every test that needs one.

`synthetic_trace` runs a real (random) attention: outputs are softmax(q·kᵀ·scale)·v of the rows it
records, so self-checks and derived weights mean something.
"""

from builders.memory import MemorySource
from builders.synthetic import Shape, synthetic_trace, without_attention

__all__ = ["MemorySource", "Shape", "synthetic_trace", "without_attention"]
