"""A factory in the user's own code to a model: their file, their errors, their line numbers.

The code runs with the user's rights; it is their own. How the model is driven is not decided
here: the module is handed on, and its optional functions say.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch
from torch import nn

from kvtrace.errors import KvtraceError, ModelError, UsageError
from kvtrace.models import memory
from kvtrace.models.adopt import adopt_tokenizer
from kvtrace.models.architecture import positions
from kvtrace.models.loaded import Loaded, Progress, Tokenizer
from kvtrace.models.on_cpu import cuda_means_cpu
from kvtrace.models.options import device_named, dtype_named
from kvtrace.models.prompts import encode_prompt, steps_that_fit
from kvtrace.models.request import LoadRequest
from kvtrace.models.spec import Source
from kvtrace.models.tokens import ByteTokenizer
from kvtrace.text import safe
from kvtrace.trace import ModelCard

T = TypeVar("T")
_NEEDS_GPU = re.compile("NVIDIA|CUDA")
_OURS = Path(__file__).resolve().parent.parent


def load_script(source: Source, request: LoadRequest, progress: Progress) -> Loaded:
    """Import the user's module, call its factory, and look at what it returns.

    Raises:
        UsageError: The module, or a factory of that name, is not there.
        ModelError: Their code failed, with its file and line; or it returned no model.
    """
    progress(f"running {source.name}", None)
    device, dtype = device_named(request.device), dtype_named(request.dtype)
    here: AbstractContextManager[object] = cuda_means_cpu() if request.cpu else nullcontext()
    with here:
        module = _imported(source)
        made = _theirs(source, _factory(module, source))
    model, tokenizer = _parts(made, module, source)
    model = model.to(device=device, dtype=dtype).eval()
    vocab_size = _vocabulary(model)
    context = positions(getattr(model, "config", None)) or positions(model)
    prompt = encode_prompt(request.prompt, tokenizer, vocab_size)
    steps = steps_that_fit(prompt, request.new_tokens, context)
    card = _card(model, source.name, tokenizer.name, vocab_size, context)
    said = f"{card.class_name} of {source.name}, {card.dtype}, on {card.device}"
    if isinstance(tokenizer, ByteTokenizer):
        said += "; it brings no tokenizer: the prompt is read as bytes"
    progress(f"{source.name} is ready", 1.0)
    return Loaded(model, tokenizer, card, said, context, prompt, steps, module)


def _imported(source: Source) -> ModuleType:
    """The user's module, with its own directory first on the path."""
    if source.kind == "module":
        here = str(Path.cwd())
        sys.path.insert(0, here)
        try:
            if _theirs(source, lambda: _spec_of(source.place)) is None:
                raise UsageError(
                    f"{source.name}: there is no module {source.place} here or among the "
                    "installed packages"
                )
            return _theirs(source, lambda: importlib.import_module(source.place))
        finally:
            sys.path.remove(here)
    path = Path(source.place).resolve()
    if str(path.parent) not in sys.path:
        # stays: factories import their neighbours later than at import
        sys.path.append(str(path.parent))
    name = path.stem if path.stem not in sys.modules else f"kvtrace_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{source.name}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader = spec.loader
    _theirs(source, lambda: loader.exec_module(module))
    return module


def _spec_of(dotted: str) -> object:
    """What would be imported; None when a part of the name is not there."""
    try:
        return importlib.util.find_spec(dotted)
    except (ModuleNotFoundError, ValueError):
        return None


def _factory(module: ModuleType, source: Source) -> Callable[[], object]:
    found = getattr(module, source.factory, None)
    if callable(found):
        return found  # type: ignore[no-any-return]
    here = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__
    ]
    offered = f"; it has {safe(', '.join(here[:8]))}" if here else "; it defines no function"
    raise UsageError(f"{source.name}: no function or class {source.factory!r} there{offered}")


def _theirs(source: Source, call: Callable[[], T]) -> T:
    """Run the user's code; what it raises becomes one line with their file and line."""
    try:
        return call()
    except (KeyboardInterrupt, KvtraceError):
        raise
    except BaseException as error:
        raise ModelError(f"{source.name}: {blamed(error, source)}") from error


def blamed(error: BaseException, source: Source) -> str:
    """`model.py:12: ValueError: …`: the innermost line of the user's own code."""
    root = Path(source.place).resolve().parent if source.kind == "file" else Path.cwd()
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _belongs(Path(frame.filename), root)]
    said = safe(f"{type(error).__name__}: {error}".rstrip(": "), 300)
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}: {said}"
    if isinstance(error, SystemExit):
        said = f"it called exit({error.code!r}) instead of returning a model"
    if _NEEDS_GPU.search(said):
        said += "; --cpu maps it to the CPU"
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}: {said}" if own else said


def _belongs(path: Path, root: Path) -> bool:
    """Whether a file is the user's, rather than ours or an installed package's."""
    return root in path.parents and _OURS not in path.parents and "site-packages" not in path.parts


def _parts(made: object, module: ModuleType, source: Source) -> tuple[nn.Module, Tokenizer]:
    """The model and tokenizer in what a factory returned."""
    model, brought = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{source.name}: it returned {type(made).__name__}; expected a torch.nn.Module, or "
            "(model, tokenizer)"
        )
    if brought is None and hasattr(module, "encode") and hasattr(module, "decode"):
        brought = (module.encode, module.decode)
    return model, ByteTokenizer() if brought is None else adopt_tokenizer(brought)


def _vocabulary(model: nn.Module) -> int:
    """Rows of the largest embedding, which for a language model is that of its tokens."""
    config = getattr(model, "config", None)
    told = getattr(config, "vocab_size", None)
    if isinstance(told, int):
        return told
    tables = [each for each in model.modules() if isinstance(each, nn.Embedding)]
    return max((table.num_embeddings for table in tables), default=0)


def _card(model: nn.Module, name: str, tokenizer: str, vocab_size: int, context: int) -> ModelCard:
    first = next(chain(model.parameters(), model.buffers()), torch.empty(0))
    config = getattr(model, "config", None)
    return ModelCard(
        name=name,
        class_name=type(model).__name__,
        architecture=str(getattr(config, "model_type", "")),
        dtype=str(first.dtype).removeprefix("torch."),
        attention=str(getattr(config, "_attn_implementation", None) or ""),
        device=str(first.device),
        parameter_count=memory.parameter_count(model),
        weight_bytes=memory.parameter_bytes(model),
        vocab_size=vocab_size,
        context_length=context,
        tokenizer=tokenizer,
    )
