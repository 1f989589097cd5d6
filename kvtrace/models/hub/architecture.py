"""From a configuration to the class that decodes with it, built first without storage.

The configuration is read before anything is built and passed on with our own choice wherever it
names something to fetch or run (attention kernels, fused modules, weight files). Knows
transformers' tables of classes, no weight file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from msgspec import Struct
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
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

from kvtrace.configs import count
from kvtrace.errors import ModelError
from kvtrace.models.hub.blame import explained
from kvtrace.models.hub.config import CONFIG, Json, read_config
from kvtrace.models.hub.own_code import advised, runs_own_code
from kvtrace.models.hub.tables import only_parameters_without_storage
from kvtrace.models.hub.weights import Weights
from kvtrace.models.patience import Patience, patiently
from kvtrace.models.request import AUTO, LoadRequest
from kvtrace.models.tokens import guarded
from kvtrace.text import safe

_POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "block_size",
    "context_length",
)
# What a config.json may name that would be fetched, patched in, or read from another file.
_NOT_ITS_CHOICE = ("_attn_implementation", "_experts_implementation")
_DROPPED = ("transformers_weights", "fusion_config", "kernel_config", "distributed_config")
_MORE_THAN_HELD = 4
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


def load_config(folder: Path, trusted: bool) -> PreTrainedConfig:
    """The configuration as transformers understands it, with its own wishes taken out.

    Raises:
        ModelError: transformers does not know or accept it.
    """
    raw = read_config(folder)
    kind = raw.get("model_type")
    if isinstance(kind, str) and kind not in CONFIG_MAPPING and not trusted:
        raise ModelError(
            f"{CONFIG}: model type {safe(kind, 60)!r} is not known to transformers "
            f"{transformers.__version__}; a newer one may know it (pip install -U transformers)"
        )
    try:
        config = guarded(
            CONFIG,
            lambda: AutoConfig.from_pretrained(
                folder, trust_remote_code=trusted, local_files_only=True
            ),
        )
    except ModelError as error:
        if runs_own_code(raw, trusted):
            raise advised(error, raw, folder) from error
        if not isinstance(kind, str):
            raise ModelError(
                f"{CONFIG}, model_type: found {safe(repr(kind), 60)}, expected the name of an "
                "architecture, such as 'gpt2'"
            ) from error
        raise explained(error, raw, lambda _: None) from error
    _take_wishes_out(config)
    return config


def _take_wishes_out(config: PreTrainedConfig) -> None:
    for each in (config, *_parts(config)):
        for name in _NOT_ITS_CHOICE:
            setattr(each, name, None)
        for name in _DROPPED:
            each.__dict__.pop(name, None)


def _parts(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    parts = (getattr(config, name, None) for name in getattr(config, "sub_configs", {}))
    found = [part for part in parts if isinstance(part, PreTrainedConfig)]
    return found + [inner for part in found for inner in _parts(part)]


def text_part(config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a configuration that speaks of the decoder of text."""
    part = guarded(CONFIG, lambda: config.get_text_config(decoder=True))
    return part if isinstance(part, PreTrainedConfig) else config


def positions(config: object) -> int:
    """Positions that the model was made for; 0 when it does not say."""
    return count(config, *_POSITIONS)


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


def outline(
    auto: AutoClass, config: PreTrainedConfig, request: LoadRequest, raw: Json, wait: Patience
) -> nn.Module:
    """The model without storage for its weights: its modules, shapes and sizes.

    That of a repository's own code has its tables all the same, for `tables.put_back`.

    Args:
        auto: Kind of model.
        config: From `load_config`.
        request: Names the attention, and says whether the repository's own code may run.
        raw: The configuration as parsed.
        wait: Building takes at most `build_s`.

    Raises:
        ModelError: It can't be built, or building does not end.
    """
    trusted, own = request.trust_remote_code, runs_own_code(raw, request.trust_remote_code)
    options = {} if request.attention == AUTO else {"attn_implementation": request.attention}

    def build(config: PreTrainedConfig = config) -> nn.Module:
        with only_parameters_without_storage() if own else torch.device("meta"):
            return auto.from_config(config, trust_remote_code=trusted, **options)

    def rebuild(other: PreTrainedConfig) -> None:
        _take_wishes_out(other)
        build(other)

    endless = ModelError(
        f"{CONFIG}: building the model took more than {wait.build_s:.0f} s; are its sizes right?"
    )
    try:
        return guarded(
            "building the model", lambda: patiently(build, wait.build_s, lambda: endless)
        )
    except ModelError as error:
        if own:
            raise advised(error, raw, Path(config.name_or_path)) from error
        raise explained(error, raw, rebuild) from error


def check_outline(model: nn.Module, weights: Weights) -> None:
    """Refuse a configuration that describes a far larger model than the weights hold.

    Raises:
        ModelError: With both numbers.
    """
    described = sum(each.numel() for each in model.parameters())
    # quantised weights pack up to 8 numbers into one
    if weights.elements and described > _MORE_THAN_HELD * 8 * weights.elements:
        raise ModelError(
            f"{CONFIG}: describes a model of {described} parameters, but the weight files hold "
            f"{weights.elements}; they do not belong together"
        )
