"""What somebody's own generating function is given."""

import pytest
import torch

from kvtrace.record.driving.trying.observe import generation_arguments

IDS = torch.tensor([[3, 1, 4]])


@pytest.mark.parametrize("name", ["n_new", "num_new", "max_new_tokens", "n_predict", "steps"])
def test_the_number_of_new_tokens_is_known_by_its_name(name):
    space: dict = {}
    exec(f"def generate(idx, {name}, temperature=0.8): ...", space)
    assert generation_arguments(space["generate"], IDS, 2) == ((), {"idx": IDS, name: 2})


@pytest.mark.parametrize(("count", "asked"), [(1, 1), (2, 5)])
def test_what_a_decorator_hides_comes_by_place(count, asked):
    def generate(*args, **kwargs): ...

    assert generation_arguments(generate, IDS, count) == ((IDS, asked), {})


def test_a_number_that_can_only_be_given_by_name_is_given():
    def generate(prime, *, length, memories=None): ...

    assert generation_arguments(generate, IDS, 2) == ((), {"prime": IDS, "length": 5})
