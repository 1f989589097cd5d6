"""A decode loop of our own: prefill, then a token at a time, under somebody's control.

A drive calls the model: as transformers' models want it by default, else in the way that was found
for somebody's own. Knows nothing of traces; a recording around it sees every forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from msgspec import Struct
from torch import Tensor, nn

from kvtrace.errors import ModelError
from kvtrace.record.capture.caches.handing import (
    cache_made,
    cache_name,
    cache_to_begin,
    holds_keys,
)
from kvtrace.record.prepared import as_overridden, positions_of, prepared, prepares, wants_more
from kvtrace.record.processes.local import device_of
from kvtrace.trace import Ending
from kvtrace.units import counted


class Control(Protocol):
    """Asked between two steps."""

    def proceed(self) -> bool:
        """Wait while paused; False: stop now."""

    def take_token(self) -> int | None:
        """A token to go on with instead of the sampled one, once."""


class Drive(Protocol):
    """Calls a model over a growing list of tokens."""

    def step(self, tokens: Sequence[int]) -> Tensor | int:
        """Feed what was not fed yet; logits of the last token, [vocab], or the token itself.

        Args:
            tokens: All of them so far, the prompt included.
        """


class Standard:
    """Calls a model as `generate` of transformers does, by its own preparation if it has one.

    Args:
        masked: Say of every token that it is no padding, as `generate` does, though it goes
            without saying.
        beside: Texts of further sequences that go in with the first one, each as long as it gets.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        masked: bool = False,
        beside: Sequence[Sequence[int]] = (),
    ) -> None:
        self._model, self._beside = model, beside
        self._prepares = prepares(model)
        self._positions = positions_of(model)
        self._device = device_of(model)
        self._name = cache_name(model.forward)
        self._cache: object = cache_to_begin(model)
        self._fed = 0
        self._masked = masked

    def again(self, beside: Sequence[Sequence[int]]) -> Standard:
        """The same from the beginning, with further texts."""
        return Standard(self._model, masked=self._masked, beside=beside)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Feed the new tokens with the cache; all of them where none came back.

        Raises:
            ModelError: The model returned no logits, or none of one sequence, or asks for more
                than tokens: for an image, say.
        """
        given = self._given(tokens)
        try:
            with torch.no_grad():
                result = self._model(**given)
        except Exception as error:
            if wants := wants_more(self._model, given, error, first=not self._fed):
                raise ModelError(wants) from error
            raise
        filled = self._cache if holds_keys(self._cache) else None
        made = cache_made(result)
        # one of somebody's own may be of length 0 however many rows it holds
        self._cache = filled if made is None else made
        self._fed = 0 if self._cache is None else len(tokens)
        return last_logits(result)

    def _given(self, tokens: Sequence[int]) -> dict[str, Any]:
        rows = [list(tokens), *(list(text[: len(tokens)]) for text in self._beside)]
        ids = torch.tensor(rows, device=self._device)
        if self._prepares:
            return prepared(self._model, ids, self._fed, self._cache)
        given = {"input_ids": ids[:, self._fed :], self._name: self._cache, "use_cache": True}
        positions = self._positions(ids)
        if positions is not None:
            given["position_ids"] = positions[..., self._fed :]
        if self._masked:
            given["attention_mask"] = torch.ones_like(ids)
        return as_overridden(self._model, ids, self._fed, given)


class Free:
    """Runs through."""

    def proceed(self) -> bool:
        """Always."""
        return True

    def take_token(self) -> int | None:
        """Never one."""
        return None


class Choice(Struct, frozen=True):
    """How the next token is chosen.

    Attributes:
        temperature: 0 is greedy.
        top_k: Sample among the k likeliest; 0 is all.
        seed: Of the sampling; None takes a fresh one.
    """

    temperature: float = 0.0
    top_k: int = 0
    seed: int | None = None


class Limits(Struct, frozen=True):
    """When to end.

    Attributes:
        new_tokens: Tokens to choose at most.
        eos: Token ids that end the text.
        context_length: Positions the model has; 0 when unbounded.
        named: What the ending calls the token that ended the text.
    """

    new_tokens: int = 32
    eos: frozenset[int] = frozenset()
    context_length: int = 0
    named: Callable[[int], str] = "token {}".format


class Sampler:
    """Chooses tokens from logits, the same for the same seed."""

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._generator = torch.Generator()
        if choice.seed is not None:
            self._generator.manual_seed(choice.seed)
        else:
            self._generator.seed()

    @torch.no_grad()
    def choose(self, logits: Tensor) -> int:
        """A token id.

        Args:
            logits: Of the last row, [vocab].
        """
        if self._choice.temperature <= 0:
            return int(logits.argmax())
        scaled = logits.detach().float().cpu() / self._choice.temperature
        if 0 < self._choice.top_k < scaled.shape[-1]:
            least = torch.topk(scaled, self._choice.top_k).values[-1]
            scaled = scaled.masked_fill(scaled < least, -torch.inf)
        weights = torch.softmax(scaled, dim=-1)
        if not bool(torch.isfinite(weights).all()):
            return int(logits.argmax())  # NaN: there is nothing to draw from
        return int(torch.multinomial(weights, 1, generator=self._generator))


def decode(
    model: nn.Module,
    prompt: Sequence[int],
    *,
    drive: Drive | None = None,
    choice: Choice | None = None,
    limits: Limits | None = None,
    control: Control | None = None,
    on_token: Callable[[int], None] | None = None,
) -> Ending:
    """Decode one sequence.

    Args:
        model: In evaluation mode.
        prompt: Token ids, at least one.
        drive: Calls the model; by default as transformers' models are called.
        choice: How tokens are chosen; greedy by default.
        limits: When to end.
        control: Polled before every step.
        on_token: Given each chosen token, before it is fed.

    Raises:
        ModelError: The model returned no logits, or none of one sequence.
    """
    limits, control = limits or Limits(), control or Free()
    sampler = Sampler(choice or Choice())
    drive = drive or Standard(model)
    tokens, made = list(prompt), 0
    while control.proceed():
        result = drive.step(tokens)
        token = control.take_token()
        if token is None:
            token = result if isinstance(result, int) else sampler.choose(result)
        if on_token is not None:
            on_token(token)
        tokens.append(token)
        made += 1
        if token in limits.eos:
            return Ending("eos", f"the model ended the text with {limits.named(token)}")
        if made >= limits.new_tokens:
            return Ending("length", f"{counted(limits.new_tokens, 'new token')}, as asked for")
        if limits.context_length and len(tokens) > limits.context_length:
            text = f"the model's context of {limits.context_length} positions is full"
            return Ending("context full", text)
    return Ending("stopped", f"stopped after {counted(made, 'new token')}")


def last_logits(result: Any) -> Tensor:
    """Logits of the last row, [vocab].

    Raises:
        ModelError: There are none, or none of one sequence.
    """
    logits = getattr(result, "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() != 3:
        raise ModelError(
            f"the model returned {type(result).__name__} without logits [1, rows, vocab]; "
            "decode with your own loop inside kvtrace.record(model, path)"
        )
    return logits[0, -1]
