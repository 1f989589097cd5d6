"""Prompts as callers have them (text, ids, tensors, one or several) to lists of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from kvtrace.errors import UsageError

Prompts = str | Tensor | Sequence[int] | Sequence[str] | Sequence[Sequence[int]] | Sequence[Tensor]


def token_ids(prompts: Prompts, tokenizer: object) -> list[list[int]]:
    """One list a prompt, none empty.

    Raises:
        UsageError: There is none, an empty one, or text without a tokenizer.
    """
    out = [_ids(prompt, tokenizer) for prompt in _each(prompts)]
    if not out:
        raise UsageError("check: no prompt was given")
    empty = next((at for at, ids in enumerate(out) if not ids), None)
    if empty is not None:
        raise UsageError(f"check: prompt {empty} has no tokens; at least one is needed")
    return out


def _each(prompts: Prompts) -> list[Any]:
    """The prompts one by one."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Tensor):
        return [prompts] if prompts.dim() < 2 else list(prompts)
    every: list[Any] = list(prompts)
    single = every and all(isinstance(one, int) for one in every)
    return [every] if single else every


def _ids(prompt: Any, tokenizer: object) -> list[int]:
    if isinstance(prompt, str):
        return _encoded(prompt, tokenizer)
    if isinstance(prompt, Tensor):
        return [int(token) for token in prompt.flatten().tolist()]
    return [int(token) for token in prompt]


def _encoded(text: str, tokenizer: Any) -> list[int]:
    if tokenizer is None:
        raise UsageError(
            "check: a prompt is text but there is no tokenizer; pass tokenizer=… or token ids"
        )
    if hasattr(tokenizer, "encode"):
        found = tokenizer.encode(text)
        return [int(token) for token in getattr(found, "ids", found)]
    return [int(token) for token in tokenizer(text)["input_ids"]]
