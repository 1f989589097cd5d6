"""Records what a model's attention consumes. The only floor, with `models`, that knows torch.

`kvtrace.record` is this package and the public verb at once, in whatever order the two are asked
for: calling the package is calling `record`.
"""

import sys
from types import ModuleType
from typing import Any

from kvtrace.record.api import Recording, record

__all__ = ["Recording", "record"]


class _Verb(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Recording:
        return record(*args, **kwargs)


sys.modules[__name__].__class__ = _Verb
