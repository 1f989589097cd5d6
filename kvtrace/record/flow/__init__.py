"""Capture by data flow."""

from kvtrace.record.flow.watch import FlowWatch

__all__ = ["FlowWatch"]
