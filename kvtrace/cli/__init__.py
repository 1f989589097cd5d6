"""The command line: one file per verb; what a verb needs is imported when it runs."""

from kvtrace.cli.entry import main

__all__ = ["main"]
