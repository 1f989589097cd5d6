"""Rows of caches that are no more."""

from __future__ import annotations

import torch
from transformers import DynamicCache

from kvtrace.record.capture.caches import outlived
from kvtrace.record.capture.caches.outlived import Outlived
from kvtrace.record.capture.caches.tracker import CacheTracker


def held(size=4):
    keys, values = torch.zeros(1, 1, size, 2), torch.zeros(1, 1, size, 2)
    return {0: (keys, values, keys._version, values._version)}


def serials(rows):
    return [one[0] for one in rows.live()]


def test_few_small_caches_are_kept_though_nobody_else_holds_them():
    rows = Outlived()
    for serial in range(outlived.CACHES + 3):
        rows.add(serial, held())
    assert serials(rows) == list(range(3, outlived.CACHES + 3))


def test_large_caches_are_let_go_and_those_that_somebody_holds_are_known(monkeypatch):
    monkeypatch.setattr(outlived, "MOST_BYTES", 100)
    rows, theirs = Outlived(), held(8)
    rows.add(0, theirs)
    rows.add(1, held(8))
    assert serials(rows) == [0]


def test_rows_that_were_changed_since_are_not_what_they_were():
    rows, theirs = Outlived(), held()
    rows.add(0, theirs)
    theirs[0][0].add_(1)
    assert serials(rows) == []


def test_a_cache_may_die_while_what_caches_hold_is_looked_through():
    tracker, rows = CacheTracker(), torch.zeros(1, 1, 4, 2)
    caches = [DynamicCache() for _ in range(3)]
    for cache in caches:
        serial = tracker.serial(cache)
        cache.update(rows + serial, rows + serial, 0)
        tracker.note(cache, {0: (cache.layers[0].keys, cache.layers[0].values)}, {})
    held = []
    for serial, *_ in tracker.live():
        held.append(serial)
        del cache, caches[1:]
    assert held == [0]
    outlived = []
    for serial, *_ in tracker.outlived.live():
        outlived.append(serial)
        caches.clear()
    assert sorted(outlived) == [1, 2]
    assert sorted(serials(tracker.outlived)) == [0, 1, 2]
