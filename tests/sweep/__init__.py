"""The sweep over every causal-LM type of transformers: what is recorded of each, verified.

`python -m sweep` in `tests/` writes `docs/coverage.md`; see `sweep.run`.
"""
