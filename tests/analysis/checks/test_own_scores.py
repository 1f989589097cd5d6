"""Large scores, which rounding of q and k moves far."""

import numpy as np

from builders.scenes import Toy
from kvtrace.analysis.checks.diagnose import diagnose

LARGE = 8.0
"""Times what scores are otherwise: the weights go to a few rows, and change at a touch."""


def large():
    toy = Toy()
    toy.q = toy.q * np.float32(LARGE)
    return toy


def scene(toy, **changes):
    k = (toy.k + np.random.default_rng(4).uniform(-9e-5, 9e-5, toy.k.shape)).astype(np.float32)
    return toy.scene(k=k, **changes)


def test_an_output_that_is_off_as_its_own_scores_are_is_given_no_name():
    now = scene(large())
    assert np.abs(now.cached.output - now.reference.output).max() > now.atol.output
    found = diagnose(now)
    assert found is None or found.name == "UNKNOWN"


def test_scores_that_are_scaled_are_named_though_they_are_large():
    found = diagnose(scene(large(), scores=lambda scores: scores * 1.2))
    assert found is not None
    assert found.name == "SCALE"
