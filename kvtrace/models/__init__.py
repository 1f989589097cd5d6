"""From a name, a directory, a script or a built-in to a model: the load gate.

Everything that can be wrong with a model is found here, before anything is recorded. It knows
nothing of recording.
"""

from kvtrace.models.load import load
from kvtrace.models.loaded import Loaded, Progress, Prompt, Tokenizer
from kvtrace.models.request import LoadRequest

__all__ = ["LoadRequest", "Loaded", "Progress", "Prompt", "Tokenizer", "load"]
