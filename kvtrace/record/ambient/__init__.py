"""Recording without a model object: `with kvtrace.record("run.kvt"):` around whatever runs."""

from kvtrace.record.ambient.recording import AmbientRecording, Report, Told

__all__ = ["AmbientRecording", "Report", "Told"]
