"""Texts of token ids, each said once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping


class Texts:
    """Asks a function for the text of ids that are new; without one there are none."""

    def __init__(self, text_of: Callable[[int], str] | None = None) -> None:
        self._text_of = text_of
        self._said: set[int] = set()

    def of(self, ids: Iterable[int]) -> Mapping[int, str]:
        """Texts of those that were not asked for before; an id the function fails on has none."""
        if self._text_of is None:
            return {}
        found: dict[int, str] = {}
        for token in ids:
            if token < 0 or token in self._said:
                continue
            self._said.add(token)
            try:
                found[token] = self._text_of(token)
            except Exception:  # a tokenizer may raise anything; the run goes on
                continue
        return found
