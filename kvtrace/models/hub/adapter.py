"""Adapters (LoRA and the like): few weights of their own beside a base model, put on it by peft.

Knows nothing of where the base model comes from, or how it is loaded.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from msgspec import Struct
from torch import nn
from transformers.utils import is_peft_available

from kvtrace.errors import ModelError, TrustError
from kvtrace.models.hub.config import read_json
from kvtrace.models.hub.weights import INDEX, PICKLE, PICKLE_INDEX, SAFETENSORS, Weights
from kvtrace.models.tokens import guarded
from kvtrace.text import safe

ADAPTER = "adapter_config.json"
_DATA, _PICKLED = "adapter_model.safetensors", "adapter_model.bin"


class Adapter(Struct, frozen=True):
    """An adapter's directory.

    Attributes:
        folder: Where it is.
        base: Name of the model that it was trained for, as `save_pretrained` wrote it.
        revision: Of that, on the hub; empty: none is named.
        weights: The file that holds its own.
    """

    folder: Path
    base: str
    revision: str
    weights: Weights


def is_adapter(folder: Path) -> bool:
    """Whether a directory holds an adapter, and no whole model beside it."""
    whole = (SAFETENSORS, INDEX, PICKLE, PICKLE_INDEX)
    return (folder / ADAPTER).is_file() and not any((folder / one).is_file() for one in whole)


def read_adapter(folder: Path, allow_pickle: bool) -> Adapter:
    """Look at an adapter's files.

    Raises:
        ModelError: It names no base model, or has no weights.
        TrustError: They are a pickle, and that is not allowed.
    """
    said = read_json(folder, ADAPTER)
    base, revision = said.get("base_model_name_or_path"), said.get("revision")
    if not isinstance(base, str) or not base.strip():
        raise ModelError(
            f"{ADAPTER}: no base_model_name_or_path, the model that it belongs to; write it there"
        )
    weights = _weights(folder, allow_pickle)
    return Adapter(folder, base, revision if isinstance(revision, str) else "", weights)


def _weights(folder: Path, allow_pickle: bool) -> Weights:
    pickled = not (folder / _DATA).is_file()
    path = folder / (_PICKLED if pickled else _DATA)
    if not path.is_file():
        raise ModelError(f"no {_DATA} beside {ADAPTER}; save it as safetensors")
    if pickled and not allow_pickle:
        raise TrustError(
            f"{path.name}: the adapter's weights are a pickle, which can run any code when it is "
            "read; save them as safetensors, or pass --allow-pickle"
        )
    return Weights((path,), pickled, {}, 0)


def put_on(model: nn.Module, adapter: Adapter) -> nn.Module:
    """The base model with the adapter's weights beside its own, called as it is without them.

    Raises:
        ModelError: peft is not installed, or can't do it; or it is a prompt that was learned.
    """
    try:
        peft = import_module("peft")
    except ImportError:
        raise ModelError(
            f"{ADAPTER}: an adapter (LoRA), which is only part of a model; `pip install peft` has "
            "it put on its base model, or merge it into that and save the whole"
        ) from None

    def put() -> tuple[nn.Module, bool]:
        whole = peft.PeftModel.from_pretrained(model, str(adapter.folder))
        return whole.get_base_model(), bool(whole.active_peft_config.is_prompt_learning)

    changed, prompt = guarded(f"putting {ADAPTER} on {safe(adapter.base)}", put)
    if prompt:
        raise ModelError(
            f"{ADAPTER}: a prompt that was learned, which goes before the tokens in no forward of "
            "the model itself; generate with it in a script of yours, `kvtrace run script.py`"
        )
    return changed.eval()


def check_beside(folder: Path, allow_pickle: bool) -> None:
    """Look at the files of an adapter that transformers puts on a whole model, if peft is there.

    Raises:
        ModelError: It has no weights.
        TrustError: They are a pickle, and that is not allowed.
    """
    if (folder / ADAPTER).is_file() and is_peft_available():
        _weights(folder, allow_pickle)


def beside(folder: Path, model: nn.Module) -> str:
    """What is said of an adapter that lies beside a whole model; empty: there is none."""
    if not (folder / ADAPTER).is_file():
        return ""
    put = "is on it" if hasattr(model, "peft_config") else "was not used, peft puts it on it"
    return f"the adapter beside its weights {put}"
