"""The traces of the ranks of one tensor-parallel run, read as the trace of one model."""

from kvtrace.files.ranks.find import open_ranks, rank_files
from kvtrace.files.ranks.merge import merge
from kvtrace.files.ranks.source import JoinedSource

__all__ = ["JoinedSource", "merge", "open_ranks", "rank_files"]
