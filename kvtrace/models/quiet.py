"""The libraries report to us, not to the terminal; their settings come back afterwards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import logging as hub_logging
from transformers import logging as model_logging


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers and huggingface_hub draw no bars and log errors only."""
    level, hub_level = model_logging.get_verbosity(), hub_logging.get_verbosity()
    bars = model_logging.is_progress_bar_enabled()
    model_logging.set_verbosity_error()
    hub_logging.set_verbosity(logging.ERROR)
    model_logging.disable_progress_bar()
    try:
        yield
    finally:
        model_logging.set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
        if bars:
            model_logging.enable_progress_bar()
