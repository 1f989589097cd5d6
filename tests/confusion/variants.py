"""Many runs of one bug: other weights, sizes, layers, tokens, batches, and moments it begins."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace
from torch import nn

from kvtrace_fixtures.zoo.drive import COURSES, Course
from kvtrace_fixtures.zoo.plant import by_layer, planted, twin
from kvtrace_fixtures.zoo.table import Bug
from kvtrace_fixtures.zoo.twins.decoder import Sizes

FIRST_STEP = ("DTYPE", "KV-HEADS", "STALE-CACHE", "NOT-CAUSAL", "LENGTH-DEPENDENT-POSITIONS")
"""Kinds that can show as soon as there is a cache."""

AT_ITS_OWN_TIME = (
    "learned-clamped",
    "cropped-early",
    "slides-too-soon",
    "capped-in-decode",
    "beams-not-reordered",
    "update-appends-twice",
    "rope-counts-padding",
)
"""Bugs that begin at a length of their own."""


class Variant(Struct, frozen=True):
    """One run of a bug.

    Attributes:
        bug: Which.
        sizes: Of the twin.
        seed: Of weights and tokens.
        layers: Where it is planted; None: it is in the whole model.
        course: What is fed.
        since: Cached tokens from which on the bug is there; 0: always.
    """

    bug: Bug
    sizes: Sizes
    seed: int
    layers: Sequence[int] | None
    course: Course
    since: int = 0

    def model(self) -> nn.Module:
        """The model, the bug in it."""
        if self.since:
            return twin(self.bug, self.sizes, self.seed)
        return planted(self.bug, self.sizes, self.seed, self.layers)

    def hook(self, model: nn.Module) -> Callable[[int], None] | None:
        """Plants the bug when its time comes."""
        if not self.since:
            return None
        there = planted(self.bug, self.sizes, self.seed, self.layers)
        classes = [type(part) for part in there.modules()]

        def plant(start: int) -> None:
            if start >= self.since:
                for part, cls in zip(model.modules(), classes, strict=True):
                    if type(part) is not cls:
                        part.__class__ = cls

        return plant

    @property
    def layer(self) -> int:
        """Layer that should be named."""
        first = 0 if self.layers is None else min(self.layers)
        if self.bug.kind == "UPSTREAM":
            return first + 1
        return 1 if self.bug.name in ("reads-layer-below", "layer-index-halved") else first

    @property
    def step(self) -> int | None:
        """Step that should be named; None: not known beforehand."""
        one = self.bug
        if one.kind in FIRST_STEP or one.name in AT_ITS_OWN_TIME or one.run == "long":
            return None
        starts = [sum(self.course.chunks[:n]) for n in range(len(self.course.chunks))]
        starts += [sum(self.course.chunks) + n for n in range(self.course.decode)]
        return next((n for n, start in enumerate(starts) if start >= max(1, self.since)), None)


def variants(bug: Bug, count: int, seed: int = 0) -> list[Variant]:
    """Different runs of a bug, the same for the same seed."""
    rng = random.Random(zlib.crc32(bug.name.encode()) + seed)
    return [_variant(bug, rng) for _ in range(count)]


def _variant(bug: Bug, rng: random.Random) -> Variant:
    kv_heads = rng.choice([2, 2, 3, 4])
    sizes = Sizes(
        layers=rng.randint(2, 5),
        heads=kv_heads * rng.choice([2, 3]),
        kv_heads=kv_heads,
        head_dim=rng.choice([8, 16, 32]),
        vocab=96,
        longest=64,
        window=rng.choice([6, 8, 9]),
    )
    if bug.twin.startswith("hub:Gpt2"):
        sizes = replace(sizes, kv_heads=sizes.heads)
    layers = _layers(bug, sizes, rng)
    course = _course(bug, rng)
    since = 0
    starts_late = bug.run in ("plain", "batch", "padded") and bug.twin.split(":")[0] != "hub"
    if starts_late and bug.kind not in FIRST_STEP and bug.name not in AT_ITS_OWN_TIME:
        since = rng.choice([0, 0, sum(course.chunks) + rng.randint(1, 3)])
    if bug.name in ("pointer-stands", "written-one-further", "last-of-prompt-lost"):
        since = 0
    return Variant(bug, sizes, rng.randint(0, 10**6), layers, course, since)


def _layers(bug: Bug, sizes: Sizes, rng: random.Random) -> list[int] | None:
    if not by_layer(bug):
        return None
    if bug.name in ("allocated-per-head", "reads-layer-below"):
        return list(range(sizes.layers))
    last = sizes.layers - 1 - (bug.kind == "UPSTREAM")
    first = rng.randint(0, last)
    return rng.choice([[first], [first], list(range(first, sizes.layers))])


def _course(bug: Bug, rng: random.Random) -> Course:
    course = replace(COURSES[bug.run], seed=rng.randint(0, 10**6))
    if bug.run in ("plain", "batch"):
        prompt = rng.randint(9, 13)
        chunks = (prompt,)
        sequences = rng.randint(1, 3) if bug.run == "plain" else rng.randint(2, 4)
        return replace(course, chunks=chunks, decode=rng.randint(5, 8), sequences=sequences)
    if bug.run == "chunks":
        chunks = (rng.randint(4, 6), rng.randint(3, 5), rng.randint(2, 4))
        return replace(course, chunks=chunks, decode=rng.randint(2, 4), sequences=rng.randint(1, 2))
    if bug.run == "padded":
        sequences, padding = rng.randint(2, 3), rng.randint(1, 5)
        return replace(course, sequences=sequences, padding=padding, chunks=(rng.randint(8, 11),))
    if bug.run == "long":
        return replace(course, chunks=(rng.randint(9, 12),), decode=rng.randint(9, 12))
    return replace(course, chunks=(rng.randint(8, 11),))
