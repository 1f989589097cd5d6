"""FLOPs of single operators: those counted here are what torch's own counter says."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from kvtrace.record.cost.formulas import matters, product_flops

OURS = {
    "mm": lambda: torch.mm(torch.ones(2, 3), torch.ones(3, 5)),
    "addmm": lambda: torch.addmm(torch.ones(5), torch.ones(2, 3), torch.ones(3, 5)),
    "bmm": lambda: torch.bmm(torch.ones(4, 2, 3), torch.ones(4, 3, 5)),
    "baddbmm": lambda: torch.baddbmm(torch.ones(5), torch.ones(4, 2, 3), torch.ones(4, 3, 5)),
    "linear": lambda: torch.nn.functional.linear(torch.ones(7, 2, 3), torch.ones(5, 3)),
    "conv1d": lambda: torch.nn.functional.conv1d(torch.ones(1, 3, 8), torch.ones(5, 3, 2)),
}


class Counting(TorchDispatchMode):
    """Sums what our formulas say, and notes operators that they never look at."""

    def __init__(self):
        super().__init__()
        self.flops, self.passed = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.flops += product_flops(func, args, kwargs or {}, out)
        if not matters(func):
            self.passed.add(func.overloadpacket.__name__)
        return out


@pytest.mark.parametrize("name", OURS)
def test_a_product_counts_what_torchs_counter_says(name):
    with FlopCounterMode(display=False) as counter:
        OURS[name]()
    with Counting() as ours:
        OURS[name]()
    assert ours.flops == counter.get_total_flops() > 0


def test_a_product_whose_factors_are_named_counts_the_same():
    with Counting() as ours:
        torch.mm(input=torch.ones(2, 3), mat2=torch.ones(3, 5))
    assert ours.flops == 2 * 2 * 3 * 5


def test_a_fused_attention_counts_scores_and_mix_of_every_query_head():
    q, k, v = torch.ones(2, 4, 3, 8), torch.ones(2, 4, 5, 8), torch.ones(2, 4, 5, 8)
    with Counting() as ours:
        torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert ours.flops == 2 * (2 * 4 * 3 * 5) * (8 + 8)


def test_a_matrix_times_a_vector_counts_though_torchs_counter_leaves_it_out():
    with Counting() as ours:
        torch.mv(torch.ones(4, 6), torch.ones(6))
    assert ours.flops == 2 * 4 * 6


def test_functions_that_multiply_nothing_are_told_by_their_name():
    with Counting() as ours:
        torch.softmax(torch.ones(3).view(1, 3) + 1, -1)
    assert ours.flops == 0
    assert {"ones", "view", "add", "_softmax"} <= ours.passed
