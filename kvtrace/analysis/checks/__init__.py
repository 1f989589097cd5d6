"""Rounding or bug, where it starts and which bug: from the rows of both lanes alone."""

from kvtrace.analysis.checks.classes import KINDS, Kind
from kvtrace.analysis.checks.report import DIVERGED, EQUAL, UNCHECKED, Finding, Report
from kvtrace.analysis.checks.verdict import check

__all__ = ["DIVERGED", "EQUAL", "KINDS", "UNCHECKED", "Finding", "Kind", "Report", "check"]
