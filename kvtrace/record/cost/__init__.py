"""What a step costs in FLOPs and bytes, from recorded shapes. Knows nothing of time."""

from kvtrace.record.cost.measured import Measured
from kvtrace.record.cost.meter import CostMeter

__all__ = ["CostMeter", "Measured"]
