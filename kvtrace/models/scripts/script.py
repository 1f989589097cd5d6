"""A factory in the user's own code to a model: their file, their errors, their line numbers.

The code runs with the user's rights; it is their own. How the model is driven is not decided
here: the module is handed on, and its optional functions say.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from itertools import chain
from types import ModuleType
from unittest.mock import patch

import torch
from torch import nn

from kvtrace.configs import word
from kvtrace.errors import ModelError
from kvtrace.models import memory
from kvtrace.models.loaded import Loaded, Progress, Tokenizer
from kvtrace.models.options import device_named, dtype_named
from kvtrace.models.prompts import encode_prompt, steps_that_fit
from kvtrace.models.request import AUTO, LoadRequest
from kvtrace.models.scripts.adopt import adopt_tokenizer
from kvtrace.models.scripts.definitions import Definitions
from kvtrace.models.scripts.factories import Factory, find_factory
from kvtrace.models.scripts.found_tokenizer import find_tokenizer
from kvtrace.models.scripts.importing import import_script
from kvtrace.models.scripts.mistakes import wants_gpu
from kvtrace.models.scripts.on_cpu import cuda_means_cpu
from kvtrace.models.scripts.returned import Returned, take_apart
from kvtrace.models.scripts.stand_in import stand_in
from kvtrace.models.scripts.vocabulary import positions_of, vocabulary_of
from kvtrace.models.spec import Source
from kvtrace.trace import ModelCard

Around = Callable[[], AbstractContextManager[object]]


def load_script(source: Source, request: LoadRequest, progress: Progress) -> Loaded:
    """Import the user's module, call its factory, and look at what it returns.

    Raises:
        UsageError: The module, or a factory of that name, is not there.
        ModelError: Their code failed, with its file and line; or it returned no model.
    """
    progress(f"running {source.name}", None)
    device, dtype = _device(request), dtype_named(request.dtype)
    said: list[str] = []
    around, module, factory, made = _run(source, request, progress, said)
    model = made.model
    if model.training and any(isinstance(one, nn.Dropout) and one.p for one in model.modules()):
        said.append("it was in training mode, with dropout: evaluation mode was switched on")
    with around():
        model = _ready(model, device, dtype)
    vocab_size = vocabulary_of(model)
    tokenizer, where = _tokenizer(made, module, request.prompt or "", vocab_size)
    said.append(where)
    context = positions_of(model)
    prompt = encode_prompt(request.prompt, tokenizer, vocab_size)
    encoded = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    steps = steps_that_fit(prompt, request, context, apart=encoded)
    card = _card(model, source.name, tokenizer.name, vocab_size, context)
    head = f"{card.class_name} of {source.name}, {card.dtype}, on {card.device}"
    progress(f"{source.name} is ready", 1.0)
    return Loaded(
        model,
        tokenizer,
        card,
        "; ".join([head, *filter(None, said)]),
        context,
        prompt,
        steps,
        module,
        made.functions,
        None if factory.once else partial(_again, factory, module, source, device, dtype),
        around,
    )


def _device(request: LoadRequest) -> torch.device | None:
    """The one that was asked for.

    Else None: it stays where their code, which may make tensors on the CPU as it goes, put it.
    """
    return None if request.device == AUTO else device_named(request.device)


def _run(
    source: Source, request: LoadRequest, progress: Progress, said: list[str]
) -> tuple[Around, ModuleType, Factory, Returned]:
    """Import and make; with --cpu once more where their code insists on a GPU."""
    around: Around = cuda_means_cpu if request.cpu else nullcontext
    try:
        module, factory, made = _made(source, request, progress, around, said)
    except ModelError as error:
        if not request.cpu or not wants_gpu(error, source):
            raise
        said.append("its code insists on a GPU: it was told that there is one")
        around = partial(cuda_means_cpu, pretend=True)
        module, factory, made = _made(source, request, progress, around, said)
    if request.cpu:
        said.append("with --cpu, cuda means the CPU")
    return around, module, factory, made


def _made(
    source: Source, request: LoadRequest, progress: Progress, around: Around, said: list[str]
) -> tuple[ModuleType, Factory, Returned]:
    with around():
        module, left_out = import_script(source, progress, definitions=request.definitions)
        factory = find_factory(module, source, left_out)
        try:
            with patch.object(sys, "argv", [source.place]):
                made = factory.make()
        except ModelError as error:
            raise _with_what_was_skipped(error, left_out) from error
    said += factory.said
    if left_out is not None:
        lines = f", {len(left_out.skipped)} other statements were left out"
        said.append(f"only its definitions were run{lines if left_out.skipped else ''}")
    returned = take_apart(made, module, source)
    said.append(returned.said)
    return module, factory, returned


def _with_what_was_skipped(error: ModelError, left_out: Definitions | None) -> ModelError:
    """A name that only a skipped statement makes is the reason."""
    cause = error.__cause__
    name = getattr(cause, "name", None)
    if left_out is None or not isinstance(cause, NameError) or name is None:
        return error
    line = left_out.made_by_skipped(name)
    return (
        error
        if line is None
        else ModelError(f"{error}; line {line}, which makes {name}, is left out by --definitions")
    )


def _again(
    factory: Factory,
    module: ModuleType,
    source: Source,
    device: torch.device | None,
    dtype: torch.dtype | None,
) -> nn.Module:
    """Another model of the same factory."""
    return _ready(take_apart(factory.make(), module, source).model, device, dtype)


def _ready(model: nn.Module, device: torch.device | None, dtype: torch.dtype | None) -> nn.Module:
    """Where and as it was asked for, in evaluation mode; an exported one is for good as it was."""
    with suppress(NotImplementedError):
        model.eval()
    for wish in (device, dtype):
        if wish is not None:
            # a class may have its own `to`, which takes one thing and returns nothing
            moved = model.to(wish)
            model = moved if isinstance(moved, nn.Module) else model
    return model


def _tokenizer(
    made: Returned, module: ModuleType, prompt: str, vocab_size: int
) -> tuple[Tokenizer, str]:
    """Returned by the factory, or found in the file, else bytes, or what so few tokens can be."""
    if made.tokenizer is not None:
        tokenizer = adopt_tokenizer(made.tokenizer)
        return tokenizer, f"the prompt is read by the tokenizer it returned ({tokenizer.name})"
    found = find_tokenizer(module, made.model)
    if found is not None:
        tokenizer, where = found
        return tokenizer, f"the prompt is read by {where} ({tokenizer.name})"
    return stand_in(prompt, vocab_size)


def _card(model: nn.Module, name: str, tokenizer: str, vocab_size: int, context: int) -> ModelCard:
    first = next(chain(model.parameters(), model.buffers()), torch.empty(0))
    config = getattr(model, "config", None)
    return ModelCard(
        name=name,
        class_name=type(model).__name__,
        architecture=word(config, "model_type"),
        dtype=str(first.dtype).removeprefix("torch."),
        attention=word(config, "_attn_implementation"),
        device=str(first.device),
        parameter_count=memory.parameter_count(model),
        weight_bytes=memory.parameter_bytes(model),
        vocab_size=vocab_size,
        context_length=context,
        tokenizer=tokenizer,
    )
