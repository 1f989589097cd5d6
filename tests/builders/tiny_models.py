"""A tiny random model of any causal-LM type that transformers knows, without downloads."""

from __future__ import annotations

import inspect

from builders.device import DEVICE
from builders.tiny_sizes import DELETE, HEADS, KEEP_NONE, OVERRIDES, SIZES

KV_HEAD_NAMES = ("num_key_value_heads", "n_head_kv", "num_kv_heads", "kv_n_heads")


def causal_lm_types() -> list[str]:
    """Every model type that maps to a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_model(model_type: str, *, seed: int = 0, **options):
    """Build it, in evaluation mode; `options` go to `from_config` (attn_implementation, dtype)."""
    import torch
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = tiny_config(model_type)
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    torch.manual_seed(seed)
    if model_type == "gemma3n":
        cls = transformers.Gemma3nForConditionalGeneration
        return _without_sight(cls, config, options).to(DEVICE)
    if model_type.startswith("musicgen"):
        cls = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
        return cls._from_config(config.decoder, **options).eval().to(DEVICE)
    return transformers.AutoModelForCausalLM.from_config(config, **options).eval().to(DEVICE)


def _without_sight(cls, config, options):
    """A model whose vision tower, of another library, is left out: text never enters it."""
    import torch
    from transformers.models.gemma3n import modeling_gemma3n as module

    build = module.AutoModel.from_config

    def from_config(part, **more):
        blind = part is config.vision_config
        return torch.nn.Identity() if blind else build(part, **more)

    module.AutoModel.from_config = from_config
    try:
        return cls._from_config(config, **options).eval()
    finally:
        module.AutoModel.from_config = build


def tiny_config(model_type: str):
    """Its configuration with every size made small."""
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[model_type]
    override = OVERRIDES.get(model_type, {})
    needs_text = "assistant" in model_type and "text_config" in override
    start = {"text_config": override["text_config"]} if needs_text else {}
    sizes = _merged(shrunk(cls(**start)), override)
    if model_type == "dots3_note":
        text = tiny_config("dots3_note_text").to_dict()
        sizes["text_config"] = text | {"per_layer_config": {}}
    sizes.pop("transformers_version", None)
    return cls(**sizes)


def shrunk(config) -> dict:
    """Keyword arguments that make a default configuration tiny, nested ones included."""
    from transformers.configuration_utils import PreTrainedConfig

    aliases = getattr(type(config), "attribute_map", None) or {}
    accepted = _accepted(type(config)) | set(config.__dict__)
    sizes = {}
    for name, size in SIZES.items():
        key = aliases.get(name, name)
        default = _default(config, key)
        fixed = isinstance(default, bool | list | tuple | dict)
        if key in accepted and not fixed and not (default is None and name in KEEP_NONE):
            sizes[key] = size
    for key in KV_HEAD_NAMES:
        heads = _default(config, "num_attention_heads")
        if key in sizes and isinstance(heads, int) and heads == _default(config, key):
            sizes[key] = HEADS
    for name in getattr(type(config), "sub_configs", None) or {}:
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            sizes[name] = shrunk(part)
    return sizes


def _accepted(cls) -> set[str]:
    names: set[str] = set()
    for parent in cls.__mro__:
        names |= set(getattr(parent, "__annotations__", {}))
        if "__init__" in parent.__dict__:
            names |= set(inspect.signature(parent.__init__).parameters)
    return names


def _default(config, key):
    """A default; heterogeneous configurations raise for values that differ by layer."""
    try:
        return getattr(config, key, None)
    except Exception:
        return config.__dict__.get(key, config.__dict__.get("_" + key))


def _merged(sizes: dict, override: dict) -> dict:
    for key, value in override.items():
        if value == DELETE:
            sizes.pop(key, None)
        elif isinstance(value, dict) and isinstance(sizes.get(key), dict):
            _merged(sizes[key], value)
        else:
            sizes[key] = value
    return sizes
