"""See an attention KV cache: record every step, scrub through it, compare lanes."""

__version__ = "0.1.0"
