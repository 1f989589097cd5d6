"""What the load gate hands on: a model that is ready, its tokenizer, its card, the prompt.

A value only; it knows nothing of where the model came from beyond the sentences it carries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Protocol

from msgspec import Struct, field
from torch import nn

from kvtrace.trace import ModelCard

Progress = Callable[[str, float | None], None]
"""Called with what is being done, and the share done in 0…1 where it is known."""


class Tokenizer(Protocol):
    """Text to token ids and back, one token at a time."""

    @property
    def name(self) -> str:
        """What it is, in words: "byte-level BPE, 599 tokens"."""
        ...

    @property
    def vocab_size(self) -> int:
        """Ids it can make; 0 when unknown."""
        ...

    @property
    def bos(self) -> int | None:
        """The token that starts a text, if there is one."""
        ...

    @property
    def eos(self) -> frozenset[int]:
        """Tokens that end a text."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, special tokens added as the model expects them."""
        ...

    def decode(self, token: int) -> str:
        """Text of one token, its leading space kept; `<0xE2>` for a part of a character."""
        ...


class Prompt(Struct, frozen=True):
    """The prompt as it will be recorded.

    Attributes:
        text: As given; empty when it was only the start token.
        ids: Token ids, at least one, each below the model's vocabulary size.
        note: A sentence when something other than the given text was used, else empty.
    """

    text: str
    ids: tuple[int, ...]
    note: str = ""


class Loaded(Struct, frozen=True):
    """A model that passed the load gate.

    Attributes:
        model: In evaluation mode, on its device.
        tokenizer: What makes its ids.
        card: For the trace; holds no absolute path, host or token.
        chosen: Sentences to show: what was used, from where.
        context_length: Positions the model was made for; 0 when unbounded or unknown.
        prompt: Encoded; prompt and new tokens together fit the context.
        new_tokens: Decode steps to make.
        script: The user's module when the model came from a factory. None otherwise.
        functions: Their own `make_cache` and `step`, where they wrote them.
        remake: Makes the model once more, by their factory.
        around: To be entered while the model runs: what `cuda` means, with `--cpu`.
    """

    model: nn.Module
    tokenizer: Tokenizer
    card: ModelCard
    chosen: str
    context_length: int
    prompt: Prompt
    new_tokens: int
    script: ModuleType | None = None
    functions: Mapping[str, Callable[..., object]] = field(default_factory=dict)
    remake: Callable[[], nn.Module] | None = None
    around: Callable[[], AbstractContextManager[object]] = nullcontext
