"""The tables that a repository's own code computes, which loading would leave as unwritten memory.

transformers builds a model without any storage and then fills in what the weight files hold. A
buffer they don't hold gets memory that nothing writes, unless the class says how to compute it
anew: transformers' own classes do, code written for transformers 4 (rotary tables, masks, slopes)
does not. So here only the parameters go without storage, and the tables that the constructor
computed are put back after the weights are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_REGISTER = "register_parameter"
_CONTEXTS = "get_init_context"


@contextmanager
def only_parameters_without_storage() -> Iterator[None]:
    """Parameters lose their storage as modules take them; every other tensor is computed."""
    register = nn.Module.register_parameter

    def emptied(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            bare = nn.Parameter(param.detach().to("meta"), param.requires_grad)
            bare.__dict__.update(param.__dict__)
            # the same object goes on, so that what shares a parameter still does
            torch.utils.swap_tensors(param, bare)  # type: ignore[no-untyped-call]
        register(module, name, param)

    setattr(nn.Module, _REGISTER, emptied)
    try:
        yield
    finally:
        setattr(nn.Module, _REGISTER, register)


@contextmanager
def loaded_with_tables() -> Iterator[None]:
    """What `from_pretrained` builds meanwhile has storage for all but its parameters."""
    own = PreTrainedModel.__dict__[_CONTEXTS]

    def contexts(cls: type[PreTrainedModel], *args: object) -> list[AbstractContextManager[object]]:
        return [
            only_parameters_without_storage() if isinstance(each, torch.device) else each
            for each in own.__func__(cls, *args)
        ]

    setattr(PreTrainedModel, _CONTEXTS, classmethod(contexts))
    try:
        yield
    finally:
        setattr(PreTrainedModel, _CONTEXTS, own)


def put_back(model: nn.Module, sketch: nn.Module, report: dict[str, list[object]]) -> None:
    """Give the buffers that no weight file holds the values that the constructor computed.

    Args:
        model: As loaded.
        sketch: Built by the same code, with its tables.
        report: Of loading; buffers leave its missing keys.
    """
    missing = set(report.get("missing_keys") or ())
    computed = dict(sketch.named_buffers())
    for name, buffer in model.named_buffers():
        table = computed.get(name)
        if table is None or table.shape != buffer.shape or table.is_meta:
            continue
        if name in missing or _is_not_saved(model, name):
            _written(buffer, table)
            missing.discard(name)
    if "missing_keys" in report:
        report["missing_keys"] = sorted(missing, key=str)


def _is_not_saved(model: nn.Module, name: str) -> bool:
    """Whether a buffer is left out of weight files by its module's own wish."""
    path, _, own = name.rpartition(".")
    return own in model.get_submodule(path)._non_persistent_buffers_set


def _written(buffer: Tensor, table: Tensor) -> None:
    with torch.no_grad():
        buffer.copy_(table)
