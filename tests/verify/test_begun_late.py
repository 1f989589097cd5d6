"""A recording that begins behind the prompt: its rows are unknown, and no bug."""

from contextlib import ExitStack

import pytest

import kvtrace
from builders.custom_drives import STYLES, UNCACHED, build, ids, through_the_cache
from kvtrace.analysis.checks import UNCHECKED

CACHED = [style for style in STYLES if style not in (*UNCACHED, "recurrent")]
PROMPT = 9


def behind_the_prompt(style, path, *, given):
    """Record the loop alone, of a model that is named or not."""
    model = build(style)
    whose = (model, path) if given else (path,)
    with ExitStack() as stack:

        def witness(cache, end):
            if end == PROMPT:
                stack.enter_context(kvtrace.record(*whose))

        through_the_cache(style, model, ids(14), PROMPT, witness=witness)
    return kvtrace.check(path)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("style", CACHED)
def test_a_loop_that_is_recorded_behind_its_prompt_has_no_bug(style, given, tmp_path):
    report = behind_the_prompt(style, tmp_path / "a.kvt", given=given)
    assert (report.verdict, report.findings) == (UNCHECKED, ())


def test_it_is_told_how_many_rows_were_there(tmp_path):
    report = behind_the_prompt("tuple_cat", tmp_path / "a.kvt", given=True)
    assert report.reason.startswith("step 0 already reads 9 rows that were cached before")
