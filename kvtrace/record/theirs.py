"""Classes of transformers by their names: a program that never imported it has no object of one.

Importing transformers takes seconds; code that goes without it is not made to wait.
"""

from __future__ import annotations

import sys
from typing import Any


class Theirs:
    """A class of transformers, as soon as the program has it.

    Attributes:
        module: The module that defines it.
    """

    __slots__ = ("_found", "_name", "module")

    def __init__(self, module: str, name: str) -> None:
        """`module` is named as within transformers."""
        self.module = f"transformers.{module}"
        self._name = name
        self._found: type[Any] | None = None

    def there(self) -> type[Any] | None:
        """The class; None: nobody imported it yet."""
        if self._found is None:
            self._found = getattr(sys.modules.get(self.module), self._name, None)
        return self._found

    def has(self, value: object) -> bool:
        """Whether a value is an object of this class, or of one that is made from it."""
        found = self.there()
        return found is not None and isinstance(value, found)


CACHE = Theirs("cache_utils", "Cache")
DYNAMIC_LAYER = Theirs("cache_utils", "DynamicLayer")
STATIC_LAYER = Theirs("cache_utils", "StaticLayer")
STATIC_SLIDING_LAYER = Theirs("cache_utils", "StaticSlidingWindowLayer")
PLAIN_LAYERS = (
    DYNAMIC_LAYER,
    Theirs("cache_utils", "DynamicSlidingWindowLayer"),
    STATIC_LAYER,
    STATIC_SLIDING_LAYER,
)
"""Of caches: those that hold keys and values and nothing else."""

ENCODER_DECODER_CACHE = Theirs("cache_utils", "EncoderDecoderCache")
MODEL = Theirs("modeling_utils", "PreTrainedModel")
MODEL_OUTPUT = Theirs("utils.generic", "ModelOutput")
