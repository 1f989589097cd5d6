"""What a forward was given, against the one before: does it go on with its tokens, and where?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from kvtrace.record.cache.own import arguments
from kvtrace.record.cache.own.repeats import KEPT, Repeats


@dataclass(slots=True)
class Fed:
    """Tokens and arguments of the forward that runs.

    Attributes:
        tokens: Ids in, [sequences, new].
        arguments: What the model is called with.
        rows: New rows of its first attention; None: none ran yet.
        repeats: It is the forward before once more, tokens, cache and all.
    """

    tokens: Tensor | None = None
    arguments: Mapping[str, object] = field(default_factory=dict)
    rows: int | None = None
    repeats: bool = False
    _handed: Repeats = field(default_factory=Repeats)
    _before: Tensor | None = None
    _resumed: bool | None = None
    _told: tuple[bool, int | None, tuple[int, ...] | None] | None = None

    def begin(self, tokens: Tensor | None, given: Mapping[str, object]) -> None:
        """A forward begins.

        Args:
            tokens: Ids in, [sequences, new].
            given: What the model is called with.
        """
        self.tokens, self.arguments = tokens, given
        self._told = self._resumed = self.rows = None
        self.repeats = self._handed.same(given, tokens, self._before)

    def over(self) -> None:
        """A forward is over whose tokens the next one is compared with."""
        self.known  # noqa: B018 - compared with the tokens before, while those are known
        self._before = None if self.tokens is None else self.tokens.detach().clone()

    @property
    def grown(self) -> int:
        """Tokens that this forward has more than the one before, which it repeats; else 0."""
        return self._longer if self.known[0] else 0

    def stands_behind(self) -> None:
        """Its tokens, those before among them, got rows of their own behind rows that are kept."""
        self._told = False, *self.known[1:]

    @property
    def resumed(self) -> bool:
        """Whether an argument named for it holds what an earlier step left there."""
        if self._resumed is None:
            self._resumed = any(
                KEPT.search(name)
                and not isinstance(value, bool | int | str)
                and arguments.filled(value)
                for name, value in self.arguments.items()
            )
        return self._resumed

    def in_rows(self, tokens: Tensor) -> Tensor:
        """Ids as [sequences, new], also of a model that takes them the other way around."""
        now = self.tokens
        turned = now is not None and now.dim() == 2 and now.shape[0] == self.rows != now.shape[1]
        return tokens.t() if turned and tokens.dim() == 2 else tokens

    @property
    def _longer(self) -> int:
        """Tokens more than in the forward before."""
        if self.tokens is None or self._before is None:
            return 0
        return self.in_rows(self.tokens).shape[-1] - self.in_rows(self._before).shape[-1]

    @property
    def known(self) -> tuple[bool, int | None, tuple[int, ...] | None]:
        """(goes on with the tokens before, position of the first token, padding) of the forward."""
        if self._told is None:
            new = 0 if self.tokens is None else self.tokens.shape[-1]
            start = arguments.start(self.arguments, self.tokens, new)
            extends = False
            if self.tokens is not None and self._before is not None:
                tokens = self.in_rows(self.tokens)
                new = tokens.shape[-1]
                extends = arguments.extends(tokens, self.in_rows(self._before))
            # a model may be given all tokens and take the new ones itself: nothing is repeated
            if extends and self.rows == self._longer:
                extends, start = False, new - self.rows if start is None else start
            self._told = (extends, start, arguments.padding(self.arguments))
        return self._told
