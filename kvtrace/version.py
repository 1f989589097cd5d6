"""The version of kvtrace, in a place that costs nothing to ask."""

__version__ = "0.1.0"
