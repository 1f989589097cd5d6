"""One pass over paths, held to what the cached lane chose wherever rounding decides.

Works on what torch is asked to select from, whatever it is for: rows of scores, one or several a
token. Selections that are not made token by token are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from kvtrace.record.capture.replaced.by_token import by_token, in_layout
from kvtrace.record.capture.replaced.choices import Choice, Selection
from kvtrace.record.capture.running import our_work, passes
from kvtrace.record.flow.calls.explain import HIDDEN_BELOW
from kvtrace.record.lanes.choices.ties import Key, Tie, Ties
from kvtrace.record.lanes.paths import Path

_SCORES = 2.0
"""Two scores are compared, each with its own rounding."""

_LAYERS_MEASURED = 4
"""Rounding grows with depth from here on, as for the rows of attention."""

_LEAST = 1e-8
"""A probability below has no logarithm worth the name."""

_ONE = 0.02
"""Probabilities of a narrow type sum to one within this."""


def held(ties: Ties, paths: Sequence[Path], rows: int, *, told: bool) -> Held | None:
    """For a pass over paths; None where the cached lane chose nothing.

    Args:
        ties: What it chose.
        paths: In the order of the batch.
        rows: Of the longest.
        told: Whether ties are to be told of; those of the referee say nothing new.
    """
    return Held(ties, paths, rows, told) if ties else None


@dataclass(slots=True)
class Held:
    """Is shown what a pass selects, and says what it goes on with."""

    ties: Ties
    paths: Sequence[Path]
    rows: int
    told: bool
    choices: tuple[Choice, ...] = ()
    _counts: dict[str, int] = field(default_factory=dict)

    def see(self, module: str, selection: Selection) -> Any | None:
        """The result with the cached lane's choices; None: the same ones."""
        key = module, self._counts.get(module, 0)
        self._counts[module] = key[1] + 1
        sizes = len(self.paths), self.rows
        mine = by_token(selection.indices, *sizes)
        scores = by_token(selection.scores, *sizes)
        theirs = None if mine is None else self._theirs(key, mine, selection)
        if mine is None or scores is None or theirs is None:
            return None
        where = (mine != theirs).any(dim=-1).nonzero()
        if not len(where):
            return None
        places = where.unbind(-1)
        here = scores[places].double() * (1 if selection.best else -1)
        in_order, size = _apart(here, theirs[places], ordered=True)
        apart = in_order if selection.ordered else _apart(here, theirs[places], ordered=False)[0]
        deeper = max(1.0, len(passes()[-1].calls) / _LAYERS_MEASURED)
        limit = size * _SCORES * self.ties.tolerance * deeper
        tied, alike = apart <= limit, in_order <= limit
        if not selection.ordered:
            # of the same options another order is nothing to tell, and somebody may use it
            same = ~_differ(mine[places], theirs[places])
            tied &= alike | ~same
        for n in tied.nonzero().flatten().tolist() if self.told else ():
            place = where[n].tolist()
            only = _only(theirs[tuple(place)], mine[tuple(place)])
            if not only[0] and not selection.ordered:
                continue
            # among what is masked anyway, nothing is chosen
            if not only[0] or bool((here[n][[*only[0], *only[1]]] > HIDDEN_BELOW).any()):
                self._tell(key, place, only, scores.shape[-1], (float(apart[n]), float(limit[n])))
        where = where[tied]
        joined = _joined(
            mine, theirs, where, torch.where(alike[tied, None], 0, here[tied]), selection
        )
        result = selection.finish(joined)
        if selection.ordered or not isinstance(result, tuple) or not selection.only:
            return result

        def exchanged() -> Tensor:
            with our_work(), torch.no_grad():
                _exchange(selection, scores, mine, theirs, where, alike[tied])
                values: Tensor = selection.finish(joined)[0]
            return values

        return Picked(result, exchanged)

    def _theirs(self, key: Key, mine: Tensor, selection: Selection) -> Tensor | None:
        """What the cached lane chose, in the lane's layout; its own where that is not known."""
        found = None
        for place, path in enumerate(self.paths):
            for node in (*path.shared, *path.nodes):
                kept = self.ties.of(node.step, key)
                if kept is None or kept.ordered != selection.ordered:
                    continue
                if not selection.only and self.ties.varies(key):
                    continue  # options that grow with the text are no experts
                start = max(node.start, path.padding)
                rows = kept.indices[node.sequence, start - node.start : node.end - node.start]
                if rows.shape[1:] != mine.shape[2:] or not rows.numel():
                    continue
                if int(rows.max()) >= selection.scores.shape[-1]:
                    continue  # slots of a larger buffer: not the lane's
                found = mine.clone() if found is None else found
                found[place, start : start + len(rows)] = rows.to(mine.device, mine.dtype)
        return found

    def _tell(
        self,
        key: Key,
        place: Sequence[int],
        chosen: tuple[tuple[int, ...], tuple[int, ...]],
        options: int,
        sizes: tuple[float, float],
    ) -> None:
        """A tie, for the step that fed the token; what the path shares was told of before."""
        path, row = self.paths[place[0]], place[1]
        node = next((n for n in path.nodes if n.start <= row < n.end), None)
        if node is None:
            return
        where = node.step, node.sequence, row - path.padding
        tie = Tie(key[0], options, *where, chosen, sizes)
        self.ties.ties.setdefault((*key, *where, *place[2:]), tie)


class Picked(tuple[Tensor, Tensor]):
    """Values and indices. Whoever takes the values alone compares all scores with them."""

    exchanged: Callable[[], Tensor]

    def __new__(cls, pair: tuple[Tensor, Tensor], exchanged: Callable[[], Tensor]) -> Picked:
        """Of both, and what makes the values that go with the indices."""
        made = super().__new__(cls, pair)
        made.exchanged = exchanged
        return made

    @property
    def values(self) -> Tensor:
        """The scores that were picked."""
        return self.exchanged()

    @property
    def indices(self) -> Tensor:
        """Where they stand."""
        return tuple.__getitem__(self, 1)

    def __getitem__(self, place: Any) -> Any:
        return self.exchanged() if place == 0 else tuple.__getitem__(self, place)


def _only(theirs: Tensor, mine: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What only the first one chose, and only the second."""
    first, second = set(theirs.tolist()), set(mine.tolist())
    return tuple(sorted(first - second)), tuple(sorted(second - first))


def _exchange(
    selection: Selection,
    scores: Tensor,
    mine: Tensor,
    theirs: Tensor,
    where: Tensor,
    alike: Tensor,
) -> None:
    """Give what the cached lane chose the better ones of the tied scores, in place.

    For code that does not use the indices but takes all that reaches the last score chosen. The
    numbers stay the same but for rounding.
    """
    target = selection.scores
    fixed = isinstance(target, nn.Parameter) or isinstance(target._base, nn.Parameter)
    spread = 0 in target.stride()  # several scores in one place
    frozen = target.is_inference() and not torch.is_inference_mode_enabled()
    if fixed or spread or frozen:
        return
    changed = scores.clone()
    for place, in_order in zip(where.tolist(), alike.tolist(), strict=True):
        at = tuple(place)
        cached, other = _only(theirs[at], mine[at])
        if len(cached) == len(other) > 0:
            both = torch.tensor([*cached, *other], device=scores.device)
            ranked = changed[at][both].sort(descending=selection.best).values
            better = changed[at][both[: len(cached)]].argsort(descending=selection.best)
            changed[at][both[: len(cached)][better]] = ranked[: len(cached)]
            worse = changed[at][both[len(cached) :]].argsort(descending=selection.best)
            changed[at][both[len(cached) :][worse]] = ranked[len(cached) :]
        if in_order:
            ranked = changed[at][theirs[at]].sort(descending=selection.best).values
            changed[at][theirs[at]] = ranked
    target.copy_(in_layout(changed, target, *mine.shape[:2]))


def _differ(mine: Tensor, theirs: Tensor) -> Tensor:
    """Which of two choices [rows, k] are not of the same options, [rows]."""
    return (mine.sort(dim=-1).values != theirs.sort(dim=-1).values).any(dim=-1)


def _apart(scores: Tensor, chosen: Tensor, *, ordered: bool) -> tuple[Tensor, Tensor]:
    """How much better a choice could have been, and how large the scores are; [rows] each.

    Args:
        scores: [rows, options], the more the better.
        chosen: [rows, k].
        ordered: Their order is the choice.
    """
    if bool((scores >= 0).all()) and bool((scores.sum(-1) - 1).abs().max() < _ONE):
        # a softmax: its logarithm is what was computed, up to a constant
        scores = scores.clamp(min=_LEAST).log()
        scores = scores - scores.mean(dim=-1, keepdim=True)
    picked = scores.gather(-1, chosen)
    if ordered:
        after = picked.flip(-1).cummax(dim=-1).values.flip(-1)
        apart = (after - picked).amax(dim=-1)
    else:
        left = scores.scatter(-1, chosen, -inf).amax(dim=-1)
        apart = left - picked.amin(dim=-1)
    size = scores.masked_fill(scores <= HIDDEN_BELOW, 0).abs().amax(dim=-1)
    # nothing hidden is better than anything hidden
    return apart.nan_to_num(nan=0.0, posinf=inf, neginf=0.0), size


def _joined(
    mine: Tensor, theirs: Tensor, where: Tensor, scores: Tensor, selection: Selection
) -> Tensor:
    """The lane's indices in their own layout, the cached lane's in some places.

    Args:
        mine: [sequences, new, parts, k].
        theirs: Of the cached lane, likewise.
        where: Places, [places, 3].
        scores: There, [places, options], the more the better; all 0 where their order is as good.
        selection: What the indices are for.
    """
    sequences, new = mine.shape[:2]
    out, places = mine.clone(), where.unbind(-1)
    chosen = theirs[places]
    if not selection.ordered:
        order = scores.gather(-1, chosen).argsort(dim=-1, descending=True, stable=True)
        chosen = chosen.gather(-1, order)
    out[places] = chosen
    return in_layout(out, selection.indices, sequences, new)
