"""Recording without a model object: `with kvtrace.record("run.kvt"):` around whatever runs."""

from kvtrace.record.ambient.recording import AmbientRecording
from kvtrace.record.ambient.report import ModelReport, Report

__all__ = ["AmbientRecording", "ModelReport", "Report"]
