"""Calls encoder-decoders of transformers as `generate` does.

The encoder reads the prompt, once. The decoder begins with a token of its own, and looks at every
step at what the encoder made of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from kvtrace.errors import ModelError
from kvtrace.record.capture.caches.handing import cache_made, cache_name
from kvtrace.record.decode import last_logits
from kvtrace.record.prepared import wants_more
from kvtrace.record.processes.local import device_of

_TEXT = "input_ids"
_BEGINS = ("decoder_start_token_id", "bos_token_id", "pad_token_id")


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether it is one of transformers', with an encoder that can be called on its own."""
    config = getattr(model, "config", None)
    return bool(getattr(config, "is_encoder_decoder", False)) and hasattr(model, "get_encoder")


class EncoderDecoder:
    """Feeds a decoder, beside an encoder that has read the prompt.

    Args:
        model: Its encoder reads token ids.
        source: Token ids of the prompt.

    Attributes:
        begin: The token that the decoder begins with.

    Raises:
        ModelError: Its encoder reads no text, or nothing says what the decoder begins with.
    """

    def __init__(self, model: nn.Module, source: Sequence[int]) -> None:
        reads = getattr(model, "main_input_name", _TEXT)
        if reads != _TEXT:
            raise ModelError(
                f"{type(model).__name__}: its encoder reads {reads}, a prompt is text; record a "
                "program that gives it some: kvtrace run script.py"
            )
        begin = _told(model, *_BEGINS)
        if begin is None:
            raise ModelError(
                f"{type(model).__name__}: nothing says which token its decoder begins with; set "
                "decoder_start_token_id in its configuration"
            )
        self.begin = begin
        self._forced = _told(model, "forced_bos_token_id")
        self._model = model
        device = device_of(model)
        self._source = torch.tensor([list(source)], device=device)
        self._name = cache_name(model.forward)
        self._encoded: object = None
        self._cache: object = None
        self._fed = 0

    def step(self, tokens: Sequence[int]) -> Tensor | int:
        """Feed the decoder its new tokens; all of them where no cache came back.

        Raises:
            ModelError: The model returned no logits, or none of one sequence, or asks for more
                than tokens.
        """
        given: dict[str, Any] = {
            "attention_mask": torch.ones_like(self._source),
            "decoder_input_ids": self._source.new_tensor([list(tokens[self._fed :])]),
            "use_cache": True,
            self._name: self._cache,
        }
        try:
            with torch.no_grad():
                result = self._called(given)
        except Exception as error:
            if wants := wants_more(self._model, given, error, first=not self._fed):
                raise ModelError(wants) from error
            raise
        self._cache = cache_made(result)
        self._fed = 0 if self._cache is None else len(tokens)
        logits = last_logits(result)
        return self._forced if len(tokens) == 1 and self._forced is not None else logits

    def _called(self, given: dict[str, Any]) -> object:
        """The decoder's pass, after that of the encoder where there was none yet."""
        if self._encoded is None:
            encoder = cast(Any, self._model).get_encoder()
            mask = given["attention_mask"]
            self._encoded = encoder(input_ids=self._source, attention_mask=mask, return_dict=True)
        return self._model(encoder_outputs=self._encoded, **given)


def _told(model: nn.Module, *names: str) -> int | None:
    """The first of some settings that the model's configurations give a number."""
    configs = [getattr(model, name, None) for name in ("generation_config", "config")]
    found = (getattr(config, name, None) for name in names for config in configs)
    return next((one for one in found if isinstance(one, int)), None)
