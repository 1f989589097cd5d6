"""The pytest plugin: a fixture that asserts that a model's cache gives what it should.

Loads nothing but pytest until the fixture is called.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def assert_cache_consistent(tmp_path: Path) -> Callable[..., None]:
    """`kvtrace.assert_cache_consistent`; the trace of a failure stays in the test's tmp_path."""
    numbers = count(1)

    def assert_consistent(model: Any, prompts: Any = None, **options: Any) -> None:
        __tracebackhide__ = True
        from kvtrace.verify.api import assert_cache_consistent as asserted

        if "keep" in options:
            asserted(model, prompts, **options)
            return
        folder = tmp_path / f"kvtrace-{next(numbers)}"
        asserted(model, prompts, keep=folder, **options)
        shutil.rmtree(folder, ignore_errors=True)

    return assert_consistent
