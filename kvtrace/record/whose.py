"""Whose code it is: that of torch or transformers is known, that of others may do anything."""

from __future__ import annotations

LIBRARIES = frozenset(("torch", "transformers", "numpy", "kvtrace", "builtins"))
"""Packages whose code keeps no rows in places of its own, and hides no description of tokens."""


def package_of(thing: object) -> str:
    """The package in which a class or a function was written; empty where it doesn't say."""
    return str(getattr(thing, "__module__", None) or "").partition(".")[0]


def of_transformers(thing: object) -> bool:
    """Whether transformers wrote a class or a function; a repository's own code is not of it."""
    return package_of(thing) == "transformers"


def of_frameworks(thing: object) -> bool:
    """Whether torch or transformers wrote a class or a function."""
    return package_of(thing) in ("torch", "transformers")
