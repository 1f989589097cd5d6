"""How often `check` calls a planted bug by its name: `python -m confusion.run` in `tests/`."""
