"""Which class decodes text with a configuration, of transformers or of a repository.

Knows transformers' tables of classes; builds nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

import transformers
from msgspec import Struct
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
)

from kvtrace.errors import ModelError
from kvtrace.models.hub.config import CONFIG
from kvtrace.text import safe

_TEXT = "input_ids"
_DECODERS: tuple[tuple[AutoClass, Any], ...] = (
    (AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
    (AutoModelForSpeechSeq2Seq, MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING),
    (AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
    (AutoModelForMultimodalLM, MODEL_FOR_MULTIMODAL_LM_MAPPING),
)
"""Besides the causal language models: what reads, hears or sees, and then writes."""
_DECODES = re.compile(r"Causal|LMHead|Generation|LM$")
_TABLES = (MODEL_FOR_CAUSAL_LM_MAPPING, *(table for _, table in _DECODERS))


class AutoClass(Protocol):
    """One of transformers' AutoModel classes."""

    def from_config(self, config: PreTrainedConfig, **options: object) -> nn.Module:
        """Build it, with random weights."""
        ...

    def from_pretrained(
        self, path: Path, **options: object
    ) -> tuple[nn.Module, dict[str, list[object]]]:
        """Build it and read its weights; with `output_loading_info` also what was missing."""
        ...


def known(model_type: object) -> bool:
    """Whether transformers itself has a decoder of that type, so that nobody's code is needed."""
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return False
    kind = CONFIG_MAPPING[model_type]
    return any(kind in table for table in _TABLES)


def auto_class(config: PreTrainedConfig) -> AutoClass:
    """The kind of model that decodes text with this configuration.

    Raises:
        ModelError: It decodes no text, reads it in one go and keeps no cache, or hears or sees
            what a prompt can't hold.
    """
    kind = type(config)
    named = (getattr(config, "architectures", None) or [""])[0]
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING
    decodes = getattr(config, "is_decoder", True) is not False or "Causal" in str(named)
    auto: AutoClass | None = None
    if getattr(config, "is_encoder_decoder", False):
        auto = _encoder_decoder(kind) or _named(config)
    elif own := _own_class(config):
        auto = own
    elif causal and decodes and not _sees(kind, str(named)):
        auto = AutoModelForCausalLM
    else:
        auto = next((one for one, table in _DECODERS if kind in table), None)
        # what reads or decodes, as it is told, has a causal class; others say it by their name
        auto = _named(config) if auto is None and (decodes or not causal) else auto
    if auto is not None:
        return auto
    found = safe(str(named) or kind.__name__)
    if getattr(config, "auto_map", None) and _is_a_repositorys(config):
        raise ModelError(
            f"{CONFIG}, auto_map: names no model that gives next tokens (found: {found}); "
            "expected AutoModelForCausalLM"
        )
    raise ModelError(
        f"{CONFIG}: has no KV cache (found: {found}, which reads a text at once and does not "
        "decode); use a causal language model"
    )


def _sees(kind: type[PreTrainedConfig], named: str) -> bool:
    """Whether a configuration names the class that sees, beside the one that only decodes."""
    found = (table[kind] for _, table in _DECODERS if kind in table)
    text = MODEL_FOR_CAUSAL_LM_MAPPING[kind].__name__
    return named != text and any(getattr(one, "__name__", "") == named for one in found)


def _encoder_decoder(kind: type[PreTrainedConfig]) -> AutoClass | None:
    """By which class an encoder-decoder is asked for, if any.

    Raises:
        ModelError: Its encoder reads no text.
    """
    for auto, table in _DECODERS:
        if kind in table:
            model = table[kind]
            reads = getattr(model, "main_input_name", _TEXT)
            if reads != _TEXT:
                raise ModelError(
                    f"{CONFIG}: the encoder of {safe(model.__name__)} reads {safe(reads)}, a "
                    "prompt is text; record a program that gives it some: kvtrace run script.py"
                )
            return auto
    return None


class _Named(Struct, frozen=True):
    """A class of transformers that no auto class leads to, called as those are."""

    kind: type[PreTrainedModel]

    def from_config(self, config: PreTrainedConfig, **options: object) -> nn.Module:
        """Build it, with random weights."""
        options.pop("trust_remote_code", None)  # none of theirs is run
        return self.kind._from_config(config, **options)  # type: ignore[no-any-return]

    def from_pretrained(
        self, path: Path, **options: object
    ) -> tuple[nn.Module, dict[str, list[object]]]:
        """Build it and read its weights, with what was missing."""
        return self.kind.from_pretrained(path, **options)  # type: ignore[no-any-return]


def _named(config: PreTrainedConfig) -> AutoClass | None:
    """The decoder that a part of a larger model was saved as, by its own name."""
    found = getattr(transformers, str((config.architectures or [""])[0]), object)
    able = getattr(found, "can_generate", None)
    theirs = isinstance(found, type) and issubclass(found, PreTrainedModel)
    return _Named(found) if theirs and able is not None and able() else None


def _own_class(config: PreTrainedConfig) -> AutoClass | None:
    """By which of transformers' classes a repository's own decoder is asked for, if any.

    Some repositories know theirs by AutoModel alone, or as one that turns a text into another.
    """
    mapped = getattr(config, "auto_map", None) or {}
    if AutoModelForCausalLM.__name__ in mapped:
        return AutoModelForCausalLM  # type: ignore[no-any-return]
    others: tuple[AutoClass, ...] = (AutoModelForSeq2SeqLM, AutoModel)
    for auto in others if _is_a_repositorys(config) else ():
        own = str(mapped.get(getattr(auto, "__name__", ""), "")).rpartition(".")[2]
        if _DECODES.search(own):
            return auto
    return None


def _is_a_repositorys(config: PreTrainedConfig) -> bool:
    """Whether a repository's own code reads the configuration."""
    return type(config).__module__.partition(".")[0] != "transformers"
