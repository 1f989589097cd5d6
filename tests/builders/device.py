"""Where the tiny models of the tests live: main memory, or a device that is asked for.

`make gpu` runs the ways of generating and the sweep once more on a GPU.
"""

from __future__ import annotations

import os

DEVICE = os.environ.get("KVTRACE_TEST_DEVICE", "cpu")
