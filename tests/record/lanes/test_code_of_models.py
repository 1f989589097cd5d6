"""The functions of somebody's code are read, and those of libraries are left alone."""

import functools

import torch
from torch import nn

from kvtrace.record.lanes.state.code import functions_of


class Wrapping(nn.Module):
    @staticmethod
    def own(x: torch.Tensor) -> torch.Tensor:
        return x

    @functools.wraps(torch.relu)
    def relu(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(x)


def test_a_method_that_wraps_a_function_in_c_is_no_code_to_read():
    assert functions_of(Wrapping()) == [Wrapping.forward]
