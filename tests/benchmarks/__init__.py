"""Each module has `NAME` and `run() -> list[Row]`; `run.py` writes docs/benchmarks.md."""
