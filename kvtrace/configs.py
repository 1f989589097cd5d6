"""What somebody's configuration says, asked carefully.

Settings may be properties that raise: some say one value for each layer, and refuse to be asked
for one of all.
"""

from __future__ import annotations


def setting(config: object, name: str) -> object:
    """A setting; None where it is not said, or not once for all layers."""
    try:
        return getattr(config, name, None)
    except Exception:
        return None


def count(config: object, *names: str) -> int:
    """The first of some settings that is a positive integer; 0: none is."""
    found = (setting(config, name) for name in names)
    return next((one for one in found if type(one) is int and one > 0), 0)
