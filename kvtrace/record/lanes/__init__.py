"""The same tokens computed another way, and how far that stands from what the cache gave."""

from kvtrace.record.lanes.lanes import Lanes
from kvtrace.record.lanes.wanted import LaneOptions

__all__ = ["LaneOptions", "Lanes"]
