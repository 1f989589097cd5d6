"""From the prompt as typed to token ids that fit the model.

Knows the tokenizer and two numbers (vocabulary, context), not the model.
"""

from __future__ import annotations

from kvtrace.errors import UsageError
from kvtrace.models.loaded import Prompt, Tokenizer
from kvtrace.models.request import LoadRequest
from kvtrace.models.tokens import ByteTokenizer

_BYTES = 256


def readable(text: str) -> str:
    """The prompt, when it is text.

    Raises:
        UsageError: Bytes that are not UTF-8 (here as surrogate escapes), with their place.
    """
    raw = text.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"prompt, byte {error.start}: 0x{raw[error.start]:02x} is not UTF-8; "
            "pass text, or a UTF-8 file with --prompt-file"
        ) from None


def encode_prompt(text: str | None, tokenizer: Tokenizer, vocab_size: int) -> Prompt:
    """Token ids of a prompt; an empty one becomes the start token.

    Args:
        text: As typed; None or empty when there is none.
        tokenizer: Of the model.
        vocab_size: Rows of the model's embedding; 0 when unknown.

    Raises:
        UsageError: Not UTF-8, or empty and there is no start token.
        UsageError: An id that the model has no embedding for.
    """
    text = readable(text or "")
    ids = tuple(tokenizer.encode(text)) if text else ()
    note = ""
    if not ids:
        if tokenizer.bos is None:
            raise UsageError(
                f"the prompt is empty and {tokenizer.name} has no start token; give some text"
            )
        ids = (tokenizer.bos,)
        note = f"the prompt is empty: starting from the start token {tokenizer.bos}"
    for place, token in enumerate(ids):
        if not 0 <= token < (vocab_size or token + 1):
            if vocab_size < _BYTES and isinstance(tokenizer, ByteTokenizer):
                raise UsageError(
                    f"prompt, token {place}: id {token} is outside the model's vocabulary of "
                    f"{vocab_size}, and it brings no tokenizer, so bytes were tried; give "
                    'token ids, as in "3 1 4", or its tokenizer: as files beside config.json, or '
                    "returned by a factory, as (model, stoi)"
                )
            raise UsageError(
                f"prompt, token {place}: id {token} ({tokenizer.name}) is outside the model's "
                f"vocabulary of {vocab_size}; use the tokenizer that the model was trained with"
            )
    return Prompt(text, ids, note)


def steps_that_fit(
    prompt: Prompt, request: LoadRequest, context_length: int, *, apart: bool = False
) -> int:
    """Decode steps to make within the context.

    Args:
        prompt: Encoded.
        request: Says how many are asked for, or how many may be taken unasked.
        context_length: Positions of the model; 0 when unbounded.
        apart: An encoder reads the prompt; what is decoded has a context to itself.

    Raises:
        UsageError: Prompt, or prompt and new tokens, exceed the context; with both numbers.
    """
    length, new_tokens, unasked = len(prompt.ids), request.new_tokens, request.unasked_tokens
    if not context_length:
        return unasked if new_tokens is None else new_tokens
    if length > context_length:
        raise UsageError(
            f"the prompt has {length} tokens, the model's context holds {context_length}; "
            "shorten the prompt"
        )
    # the last new token is chosen but never fed back, so it takes no position
    room = context_length if apart else context_length - length + 1
    if new_tokens is None:
        return min(unasked, room)
    if new_tokens > room:
        fed = "" if apart else f"{length} prompt tokens and "
        raise UsageError(
            f"{fed}{new_tokens} new ones exceed the model's context of "
            f"{context_length}; use -n {room} or less"
        )
    return new_tokens
