"""Records what a model's attention consumes. The only floor, with `models`, that knows torch.

`kvtrace.record` is this package and the public verb at once, in whatever order the two are asked
for: calling the package is calling `record`.
"""

import sys
from types import ModuleType
from typing import Any

from kvtrace.record.ambient import AmbientRecording
from kvtrace.record.api import record
from kvtrace.record.recording import Recording

__all__ = ["AmbientRecording", "Recording", "record"]


class _Verb(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Recording | AmbientRecording:
        found: Recording | AmbientRecording = record(*args, **kwargs)
        return found


sys.modules[__name__].__class__ = _Verb
