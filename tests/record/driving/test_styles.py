"""People's models, each called in its own way, found without a hint."""

import importlib.util

import pytest

from builders.custom_drives import STYLES as FIXTURES
from builders.driven import greedy, run_file
from builders.people import HERE, STYLES, UNCACHED


@pytest.fixture(scope="module")
def expected():
    spec = importlib.util.spec_from_file_location("parts_of_people", HERE / "parts.py")
    parts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(parts)
    return greedy(parts.Core().eval().full, b"hello", 6)


@pytest.mark.parametrize("style", STYLES)
def test_a_style_is_called_as_its_author_would_and_says_the_same_tokens(style, expected):
    factory = "GPT" if style == "config_object" else "build"
    run = run_file(f"{HERE / style}.py:{factory}")
    assert run.driven.call == STYLES[style]
    assert run.tokens == expected


@pytest.mark.parametrize("style", sorted(UNCACHED))
def test_without_a_cache_it_is_said_what_one_would_leave(style):
    factory = "GPT" if style == "config_object" else "build"
    said = run_file(f"{HERE / style}.py:{factory}").driven.said
    # 5 + 6 + … + 10 rows; with a cache 5 and then one for each further step
    assert "in 6 steps that is 45 rows, where a cache would leave 10" in said[0]


@pytest.mark.parametrize("style", FIXTURES)
def test_every_fixture_is_driven_by_itself_and_agrees(style):
    run = run_file(f"fixtures/kvtrace_fixtures/custom/{style}.py:build", new_tokens=3)
    assert len(run.driven.said) == 1  # nothing to complain of
    uncached = style in ("multihead_module", "head_modules")
    assert ("no cache was found" in run.driven.said[0]) == uncached
