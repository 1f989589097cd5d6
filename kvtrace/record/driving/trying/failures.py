"""Ways to call a model that did not go: why, and which others can't go for the same reason."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from msgspec.structs import replace

from kvtrace.record.driving.trying.evidence import Tried
from kvtrace.record.driving.ways.roles import Signature
from kvtrace.record.driving.ways.way import Way
from kvtrace.text import safe

_RAISED = re.compile(r"\w+(Error|Exception|Interrupt|Exit)\b")

_FIXED = re.compile(
    r"Guard failed: \w+\.size\(\)\[\d+\] == (\d+)"
    r"|Expected input at \S+\.shape\[\d+\] to be equal to (\d+)"
)
"""What torch.export's models say of a length that they were not exported for."""

_ANY_SHAPE = re.compile(r"\[.*?\]|\d+")


@dataclass(slots=True)
class Failures:
    """What failed in one search.

    Attributes:
        why: The first way that failed, by the reason.
        stumbled: The first way with a cache whose first call went well and whose next one raised.
        refused: A way with a cache raised.
    """

    why: dict[str, str] = field(default_factory=dict)
    stumbled: Tried | None = None
    refused: bool = False
    _dead: set[str] = field(default_factory=set)

    def note(self, tried: Tried) -> None:
        """Keep why a way failed, and what need not be tried any more."""
        self.why.setdefault(tried.why, str(tried.way))
        if not tried.begins:
            self._dead.add(_beginning(tried.way))
        if not tried.reached and _RAISED.match(tried.why):
            self._dead.add(_key(tried.way))
        self.refused |= bool(_RAISED.match(tried.why)) and asks_for_a_cache(tried.way)
        raised = tried.reached and _RAISED.match(tried.why)
        if raised and self.stumbled is None and asks_for_a_cache(tried.way):
            self.stumbled = tried

    def rule_out(self, way: Way) -> bool:
        """Whether a way is known to fail: it begins as one that could not, or its call raised."""
        again = way.feeds == "all" or (way.cache and (way.cache.pick or way.cache.moved))
        return _beginning(way) in self._dead or bool(again and _key(way) in self._dead)

    def forgive(self) -> None:
        """Try all of them again: otherwise than before."""
        self._dead.clear()

    def complaint(self, signature: Signature) -> str:
        """That none works: what was tried, and what to add."""
        fixed = next(filter(None, map(_FIXED.search, self.why)), None)
        if fixed is not None:
            return (
                f"{safe(signature.name)} was exported for {fixed[1] or fixed[2]} tokens and takes "
                "no other number: export it again with dynamic_shapes that leave their number "
                'open, as {"ids": {1: torch.export.Dim("tokens")}}, or give the model that it was '
                "made of"
            )
        alike: dict[str, str] = {}
        for why, way in self.why.items():
            alike.setdefault(_ANY_SHAPE.sub("", why), f"{way}: {why}")
        reasons = list(alike.values())[:3]
        tried = "; ".join(safe(one, 240) for one in reasons) or "no parameter takes token ids"
        where = f" It is written in {safe(signature.place)}." if signature.place else ""
        # ids that a matrix is multiplied by are Long, whatever the parts are
        mixed = any("same dtype" in why and "Long" not in why for why in self.why)
        hint = (
            " Its parts differ in dtype, as under autocast: try --dtype bfloat16." if mixed else ""
        )
        return (
            f"no way to call {safe(str(signature), 160)} was found ({tried}).{where}{hint} Add to "
            "your file: def step(model, ids, cache, pos), which returns logits or (logits, cache)"
        )


def asks_for_a_cache(way: Way) -> bool:
    """Whether a call makes a cache, turns one on, or says where its tokens stand."""
    flags = {one.name for one in way.signature.of("flag") if one.turns_cache_on}
    places = {one.name for one in way.signature.of("position")}
    told = any(one.name in flags | places for one in way.given)
    return way.cache is not None or told or any(not one.empties for one in way.first)


def _key(way: Way) -> str:
    """A way, but for where its cache comes back."""
    return f"{replace(way, feeds='new')} {_beginning(way)}"


def _beginning(way: Way) -> str:
    """All that comes before the first call."""
    begin = "" if way.cache is None else f"{way.cache.begin.said} {way.cache.begin.number}"
    return f"begins: {begin} {[one.said for one in way.first]}"
