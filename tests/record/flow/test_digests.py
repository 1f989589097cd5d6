"""Digests of rows tell any change, all at once or part by part."""

import numpy as np
import pytest
import torch

from kvtrace.record.match import PARTS, digest
from record.flow.test_rows import rows


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_one_changed_bit_changes_the_digest(dtype):
    keys = rows(3)[0].to(dtype)
    changed = keys.clone()
    changed[0, 1, 2, 3] = torch.nextafter(changed[0, 1, 2, 3].float(), torch.tensor(9e9)).to(dtype)
    if torch.equal(changed, keys):  # too small a step for a half
        changed[0, 1, 2, 3] *= 1.01
    assert (digest(keys) == digest(changed)).tolist() == [[True, True, False]]


def test_a_digest_is_the_sum_of_its_parts():
    keys = rows(3, sequences=2, dim=19)[0]
    np.testing.assert_array_equal(digest(keys), sum(digest(keys, part) for part in range(PARTS)))
