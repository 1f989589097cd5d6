"""What a pass over tokens needs besides them: an encoder's output, images, kinds of tokens.

Kept by text and sequence; what there is one of for each token also by step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from kvtrace.record.capture.forward import Forward
from kvtrace.record.capture.tokens.inputs import is_source
from kvtrace.record.lanes.given.apart import Apart
from kvtrace.record.lanes.given.brought import Brought
from kvtrace.record.lanes.given.codes import Codes
from kvtrace.record.lanes.given.embedded import Embedded, along
from kvtrace.record.lanes.given.handed import Handed
from kvtrace.record.lanes.given.tables import table_of
from kvtrace.record.lanes.passes.batch import CannotRecomputeError
from kvtrace.record.lanes.paths import Path
from kvtrace.record.parts import mapped
from kvtrace.record.theirs import CACHE

MAX_TEXTS = 256
"""Texts whose arguments are kept; the oldest are let go, and not recomputed."""

_REPLACED = {
    "input_ids",
    "decoder_input_ids",
    "inputs_embeds",
    "decoder_inputs_embeds",
    "past_key_values",
    "use_cache",
    "position_ids",
    "cache_position",
    "logits_to_keep",
    "decoder_attention_mask",
    "labels",
}

_TOKEN = re.compile(r"token|type|segment|lang", re.IGNORECASE)
"""What there is one of for each token, by its name."""

_MASK = re.compile(r"mask|bias", re.IGNORECASE)
"""A table of queries and keys has a row for each token, too."""


@dataclass(slots=True)
class Extras:
    """Further arguments, by the step that a text begins with.

    Attributes:
        embedded: Rows that went in instead of ids.
        made: Rows that were made of the ids before the model was called.
        codes: Ids, where a position has several.
        apart: Steps that lie on no path.
        brought: Images and sounds of later turns.
        handed: State that steps handed back, and later ones were given.
    """

    embedded: Embedded = field(default_factory=Embedded)
    made: Embedded = field(default_factory=Embedded)
    codes: Codes = field(default_factory=Codes)
    apart: Apart = field(default_factory=Apart)
    brought: Brought = field(default_factory=Brought)
    handed: Handed = field(default_factory=Handed)
    _texts: dict[int, tuple[int, Mapping[str, object]]] = field(default_factory=dict)
    _last: tuple[int, ...] | None = None
    _told: dict[int, Mapping[str, Tensor]] = field(default_factory=dict)
    _names: frozenset[str] = frozenset()

    def add(self, step: int, forward: Forward) -> None:
        """A forward became a step: where it begins a text, keep what it was called with."""
        self.codes.add(step, forward)
        self.apart.add(step, forward)
        self.handed.add(step, forward)
        goes_on = any(
            update.part == "self" and update.length > update.new_keys.shape[2]
            for update in forward.updates
        )
        self.brought.add(step, forward, _of_its_tokens(forward), begins=not goes_on)
        if goes_on:
            if self._names:
                given = {name: forward.argument(name) for name in self._names}
                self._tell(step, given, forward, begins=False)
            return
        kinds = _per_token(forward)
        self._names |= kinds.keys()
        self._tell(step, kinds, forward, begins=True)
        extra = _extra(forward)
        objects = (forward.sequences, *(id(value) for value in extra.values()))
        if objects == self._last:
            return
        self._last = objects
        self._texts[step] = forward.sequences, extra
        while len(self._texts) > MAX_TEXTS:
            del self._texts[next(iter(self._texts))]
            first = next(iter(self._texts))
            self._told = {one: rows for one, rows in self._told.items() if one >= first}
            self.brought.forget(first)

    def _tell(
        self, step: int, kinds: Mapping[str, Tensor | None], forward: Forward, *, begins: bool
    ) -> None:
        """Keep what each new token was called; of a text that goes on, all but zeros."""
        new = forward.new
        rows = {
            name: one[:, -new:].detach().cpu().clone()
            for name, one in kinds.items()
            if one is not None and one.shape[0] == forward.sequences and one.shape[1] >= new
        }
        if (begins and rows) or any(bool(one.any()) for one in rows.values()):
            self._told[step] = rows

    def text(self, path: Path) -> int | None:
        """The step whose arguments go with a path; None: they were let go."""
        before = [step for step in self._texts if step <= path.root]
        return max(before, default=None)

    def together(self, path: Path) -> int:
        """Sequences of a text whose arguments can't be told apart; 0: they can."""
        step = self.text(path)
        sequences, extra = self._texts.get(-1 if step is None else step, (0, {}))
        whole = (one for name, one in extra.items() if name != "position_ids")
        return 0 if all(_one_each(value, sequences) for value in whole) else sequences

    def of(self, paths: Sequence[Path]) -> Mapping[str, object]:
        """Arguments for paths of one text, in their order.

        Raises:
            CannotRecomputeError: They belong to other sequences, and can't be told apart.
        """
        step = self.text(paths[0]) if paths else None
        if step is None:
            return {}
        sequences, extra = self._texts[step]
        rows = [path.row for path in paths]
        if rows != list(range(sequences)) and max(rows) < sequences:
            if self.together(paths[0]):
                raise CannotRecomputeError(
                    "its other arguments belong to all its sequences at once, and these changed "
                    "places; recompute once, not each step"
                )
            extra = {
                name: _positions(value, rows)
                if name == "position_ids" and isinstance(value, Tensor)
                else _rows(value, rows, sequences)
                for name, value in extra.items()
            }
        later = self.brought.behind(extra, paths)
        return {**extra, **later, **self._of_tokens(paths), **self._of_rows(paths)}

    def _of_rows(self, paths: Sequence[Path]) -> Mapping[str, Tensor]:
        """What went in instead of an id for each position."""
        if self.codes.mixed(paths):
            raise CannotRecomputeError(
                "some of its steps were given one id for each position, and others several"
            )
        return {**self.made.of_all(paths), **self.embedded.of(paths), **self.codes.of(paths)}

    def _of_tokens(self, paths: Sequence[Path]) -> Mapping[str, Tensor]:
        """What each token of these paths was called, [paths, rows, …]; what is not known 0.

        Fillers behind a shorter path are called what the last token of a longest one is.
        """
        found: dict[str, Tensor] = {}
        for name in sorted(self._names):
            told = {step: rows[name] for step, rows in self._told.items() if name in rows}
            table = along(paths, told)
            if table is not None:
                found[name] = table
        longest = max(range(len(paths)), key=lambda place: (len(paths[place].tokens), -place))
        for place, path in enumerate(paths):
            for table in found.values():
                table[place, len(path.tokens) :] = table[longest, -1]
        return found


def _one_each(value: object, sequences: int) -> bool:
    """Whether an argument has one row for each sequence, or nothing that could have."""
    if isinstance(value, Tensor):
        return value.dim() == 0 or value.shape[0] == sequences
    if isinstance(value, Mapping):
        return all(_one_each(part, sequences) for part in value.values())
    return not isinstance(value, tuple | list)


def _positions(given: Tensor, rows: Sequence[int]) -> Tensor:
    """Positions of some sequences, [sequences, new] or with an axis more before."""
    return given if given.shape[-2] == 1 else given[..., list(rows), :]


def _rows(value: Any, rows: Sequence[int], sequences: int) -> Any:
    """Some sequences of an argument, where it has one row for each."""

    def picked(one: Tensor) -> Tensor:
        return one[list(rows)] if one.dim() > 0 and one.shape[0] == sequences else one

    return mapped(value, picked)


def _extra(forward: Forward) -> Mapping[str, object]:
    """Arguments that any pass over these tokens needs."""
    takes_decoder = "decoder_input_ids" in forward.arguments
    kinds = _per_token(forward)
    found: dict[str, object] = {} if takes_decoder else dict(table_of(forward))
    for name, value in forward.arguments.items():
        if value is None or isinstance(value, bool) or CACHE.has(value):
            continue
        if name in _REPLACED and not (takes_decoder and name == "input_ids"):
            continue
        if name == "attention_mask" and not takes_decoder:
            continue
        if name in kinds:
            continue
        found[name] = value
    given = forward.argument("position_ids")
    if given is not None and given.dim() in (2, 3) and not takes_decoder:
        found["position_ids"] = given  # of the first tokens: those after them go on counting
    elif forward.argument("attention_mask") is not None and not takes_decoder:
        found["position_ids"] = None  # the model counts for itself, padding included
    return found


def _of_its_tokens(forward: Forward) -> set[str]:
    """Arguments that say something of a step's own tokens, or are an encoder's."""
    return {
        name
        for name, one in forward.arguments.items()
        if name in _REPLACED or _MASK.search(name) or is_source(name, one)
    } | _per_token(forward).keys()


def _per_token(forward: Forward) -> Mapping[str, Tensor]:
    """Arguments with a whole number, or several, for each token: of a text, of an image."""
    if "decoder_input_ids" in forward.arguments:
        return {}
    return {
        name: value
        for name, value in forward.arguments.items()
        if name not in _REPLACED
        and name != "attention_mask"
        and isinstance(value, Tensor)
        and not is_source(name, value)  # though it may be as long by chance
        and not value.is_floating_point()
        and value.dim() >= 2
        and tuple(value.shape[:2]) == (forward.sequences, forward.new)
        and (forward.new > 1 or _TOKEN.search(name))
        and not (_MASK.search(name) and value.dim() == 3 and value.shape[2] >= forward.new)
    }


def bound(extra: Mapping[str, object], rows: int) -> str:
    """Why a pass can't be given what a step was; empty: nothing is of that step's tokens alone.

    Args:
        extra: Arguments of the step that a text begins with.
        rows: Tokens of the pass.
    """
    tables = {
        name: value
        for name, value in extra.items()
        if isinstance(value, Tensor)
        and value.dim() == 3
        and value.is_floating_point()
        and value.shape[-1] != rows
        and re.search(r"mask|mapping|bias", name, re.IGNORECASE)
    }
    if not tables:
        return ""
    names = " and ".join(f"`{name}`" for name in tables)
    tokens = max(one.shape[-1] for one in tables.values())
    return (
        f"{names} of its first step fit no other number of tokens: they say which of its {tokens} "
        f"see which, and nothing of the {rows} of a pass over the whole text"
    )
