"""Whatever a test of the recorder does: afterwards nothing stands in anybody's place."""

import pytest
import torch

from kvtrace.record.capture.caches import updates
from kvtrace.record.capture.replaced import choices, clean, compiled, generate, interface, overlay
from kvtrace.record.paged import engine

_PATCHES = {
    "caches": updates.CACHES,
    "choices": choices.CHOICES,
    "copies": clean.CLEAN,
    "compiled calls": compiled._CALLS,
    "generate": generate.GENERATE,
    "interface": interface.INTERFACE,
    "engine": engine.ENGINE,
}


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny models are slower, and their last bits others, where several threads share them."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_trace_of_us_is_left():
    yield
    held = [name for name, patches in _PATCHES.items() if patches._holders]
    assert held == []
    assert [one._owner for one in overlay._installed.values() if not one.over] == []
