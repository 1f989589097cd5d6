"""From a configuration to the outline of its model: built first without storage.

The configuration is read before anything is built and passed on with our own choice wherever it
names something to fetch or run (attention kernels, fused modules, weight files). Knows no weight
file.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from kvtrace.errors import ModelError
from kvtrace.models.hub.blame import explained
from kvtrace.models.hub.config import CONFIG, Json, read_config
from kvtrace.models.hub.decoders import AutoClass
from kvtrace.models.hub.own_code import advised, runs_own_code
from kvtrace.models.hub.tables import only_parameters_without_storage
from kvtrace.models.hub.weights import Weights
from kvtrace.models.patience import Patience, patiently
from kvtrace.models.request import AUTO, LoadRequest
from kvtrace.models.tokens import guarded
from kvtrace.text import safe

# What a config.json may name that would be fetched, patched in, or read from another file.
_NOT_ITS_CHOICE = ("_attn_implementation", "_experts_implementation")
_DROPPED = ("transformers_weights", "fusion_config", "kernel_config", "distributed_config")
_MORE_THAN_HELD = 4


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
