"""How far two lanes may stand apart and still be rounding, relative to the largest value.

Measured on healthy random-init models of 185 architectures, 12 layers and fewer; rounding grows
about with the square root of the depth.
"""

from __future__ import annotations

from math import sqrt

from kvtrace import units

_HELD = {
    "float64": 1e-12,
    "float32": 2e-5,
    "TF32": 3e-3,  # as many digits as float16
    "float16": 3e-3,
    "bfloat16": 2e-2,
}
_MEASURED_LAYERS = 12


def tolerance(dtype: str, layers: int) -> tuple[float, str]:
    """Relative tolerance, and the reason in words.

    Args:
        dtype: The less exact one of the two lanes'; "TF32" where float32 is multiplied in it.
        layers: Attention sites the values pass through.
    """
    base = _HELD.get(dtype, _HELD["bfloat16"])
    grown = base * sqrt(max(1.0, layers / _MEASURED_LAYERS))
    depth = units.counted(layers, "layer")
    return grown, f"{dtype} rounding through {depth}; healthy models stay within {grown:.0e}"


def higher(dtype: str) -> str:
    """The dtype of a referee: float32, or float64 where that is what is judged."""
    return "float64" if dtype in ("float32", "float64") else "float32"
