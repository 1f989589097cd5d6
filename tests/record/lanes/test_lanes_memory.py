"""Rows of the cached lane that several lanes are held against."""

from __future__ import annotations

import numpy as np

from kvtrace.record.lanes.compared.cached import MOST_BYTES, Memory, Rows
from kvtrace.record.lanes.paths import Node
from kvtrace.trace import Tensor

NODES = [Node(0, 0, 0, 4), Node(1, 0, 4, 5)]


def reader(reads):
    def read():
        reads.append(1)
        rows = np.zeros((2, 5, 8), np.float32)
        return Rows(rows, np.arange(5), np.array([0, 4]), NODES)

    return read


def test_rows_are_read_once_for_all_lanes():
    memory, reads = Memory(MOST_BYTES), []
    first = memory.rows(0, Tensor.KEYS, NODES, reader(reads))
    assert memory.rows(0, Tensor.KEYS, NODES, reader(reads)) is first
    assert len(reads) == 1


def test_other_sites_tensors_and_stretches_are_other_rows():
    memory, reads = Memory(MOST_BYTES), []
    for site, tensor, nodes in (
        (0, Tensor.KEYS, NODES),
        (1, Tensor.KEYS, NODES),
        (0, Tensor.VALUES, NODES),
        (0, Tensor.KEYS, NODES[:1]),
    ):
        memory.rows(site, tensor, nodes, reader(reads))
    assert len(reads) == 4


def test_what_does_not_fit_is_read_again():
    size = 2 * 5 * 8 * 4
    memory, reads = Memory(size), []
    for _ in range(2):
        memory.rows(0, Tensor.KEYS, NODES, reader(reads))
        memory.rows(1, Tensor.KEYS, NODES, reader(reads))
    assert len(reads) == 3
