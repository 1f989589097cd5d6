"""What a trace says of a model, read off any module: never a path, host or user."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from torch import nn
from torch.nn.parameter import is_lazy

from kvtrace.configs import context_length, count, word
from kvtrace.errors import UsageError
from kvtrace.record.cache.stores import dtype_name
from kvtrace.record.precision import product_dtype, product_eps
from kvtrace.record.processes.local import here
from kvtrace.trace import ModelCard


def card(model: nn.Module, name: str | None = None) -> ModelCard:
    """The card of a model.

    Args:
        model: Any module; a config is used where there is one.
        name: What to call it; by default its class.

    Raises:
        UsageError: Some of it has no weights yet.
    """
    lazy = next((path for path, one in model.named_parameters() if is_lazy(one)), "")
    if lazy:
        raise UsageError(
            f"{type(model).__name__}.{lazy}: a lazy layer has no weights before its first call; "
            "call the model once, with any tokens, before it is recorded"
        )
    config = getattr(model, "config", None)
    text = text_config(model)
    parameters = list({id(one): one for one in model.parameters()}.values())
    dtypes = Counter(dtype_name(one.dtype) for one in parameters if one.is_floating_point())
    return ModelCard(
        name=name or type(model).__name__,
        class_name=type(model).__name__,
        architecture=word(config, "model_type"),
        weights=word(config, "_commit_hash"),
        dtype=dtypes.most_common(1)[0][0] if dtypes else "float32",
        products=_products(parameters),
        attention=word(config, "_attn_implementation"),
        device=_devices(model, parameters),
        parameter_count=sum(one.numel() for one in parameters),
        weight_bytes=sum(here(one).nbytes for one in parameters),
        vocab_size=count(text, "vocab_size"),
        context_length=context_length(text),
    )


def _products(parameters: Sequence[nn.Parameter]) -> str:
    """What factors of float32 are rounded to on the least exact of their devices."""
    devices = {one.device for one in parameters if one.is_floating_point()}
    return product_dtype(max(devices, key=product_eps)) or "" if devices else ""


def _devices(model: nn.Module, parameters: Sequence[nn.Parameter]) -> str:
    """Where its parameters are; offloaded ones are where accelerate keeps them."""
    own = [one.device for one in parameters]
    names = [str(one) for one in own]
    told = getattr(model, "hf_device_map", None)
    if isinstance(told, Mapping) and told:
        kind = next((one.type for one in own if one.type not in ("cpu", "meta")), "cuda")
        names = [f"{kind}:{one}" if isinstance(one, int) else str(one) for one in told.values()]
    return ", ".join(dict.fromkeys(names)) or "cpu"


def text_config(model: nn.Module) -> object:
    """The config of the part that makes text; None without a config."""
    config = getattr(model, "config", None)
    ask = getattr(config, "get_text_config", None)
    return config if ask is None else ask(decoder=True)


@cache
def versions() -> Mapping[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in ("kvtrace", "torch", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
