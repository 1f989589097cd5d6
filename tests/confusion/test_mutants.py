"""Every edit still finds the code that it edits."""

import importlib
import inspect

import pytest

from confusion.mutants import mutants


@pytest.mark.parametrize("mutant", mutants(), ids=lambda one: f"{one.where}: {one.name}")
def test_the_text_that_an_edit_replaces_is_in_the_source(mutant):
    if mutant.custom:
        found = importlib.import_module(f"kvtrace_fixtures.custom.{mutant.where}")
    else:
        module, _, path = mutant.where.split()[1].partition(":")
        owner, _, name = path.partition(".")
        found = inspect.unwrap(vars(getattr(importlib.import_module(module), owner))[name])
    source = inspect.getsource(found)
    assert mutant.edited(source) != source
