"""A Hugging Face directory to a loaded model: every check in order, cheap ones first.

Configuration, trust, weight headers, tokenizer, prompt and context, sizes and memory come before
the first weight is read. Nothing here reaches the network.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch
from msgspec import Struct
from torch import nn
from transformers import PreTrainedConfig

from kvtrace.configs import context_length, count
from kvtrace.errors import MemoryLimitError, ModelError
from kvtrace.models import memory
from kvtrace.models.caching import check_caches
from kvtrace.models.hub.adapter import beside, check_beside
from kvtrace.models.hub.architecture import (
    check_outline,
    load_config,
    outline,
    text_part,
)
from kvtrace.models.hub.blame import check_cache_to_begin, check_counts
from kvtrace.models.hub.config import CONFIG, check_sizes, code_files, needs_trust, read_config
from kvtrace.models.hub.decoders import AutoClass, auto_class, known
from kvtrace.models.hub.generation import damaged, left_out
from kvtrace.models.hub.missing import check_complete
from kvtrace.models.hub.own_code import advised, runs_own_code
from kvtrace.models.hub.read_tokenizer import read_tokenizer
from kvtrace.models.hub.tables import loaded_with_tables, put_back
from kvtrace.models.hub.unread import unread
from kvtrace.models.hub.weights import Weights, find_weights
from kvtrace.models.loaded import Loaded, Progress, Prompt, Tokenizer
from kvtrace.models.options import check_attention, device_named, dtype_named
from kvtrace.models.patience import Patience
from kvtrace.models.prompts import encode_prompt, steps_that_fit
from kvtrace.models.request import AUTO, LoadRequest
from kvtrace.models.tokens import ByteTokenizer, guarded
from kvtrace.text import safe
from kvtrace.trace import ModelCard


class Origin(Struct, frozen=True):
    """Where a directory came from.

    Attributes:
        name: What to call it in the trace.
        commit: Of a hub repository, else empty.
        chosen: A sentence on what was used.
    """

    name: str
    commit: str = ""
    chosen: str = ""


class _Plan(Struct, frozen=True):
    """Everything that is known before the weights are read."""

    auto: AutoClass
    config: PreTrainedConfig
    weights: Weights
    tokenizer: Tokenizer
    prompt: Prompt
    new_tokens: int
    context_length: int
    unused_code: str
    left_out: str


def judge(folder: Path, commit: str, trusted: bool) -> str:
    """The checks that need only the small files.

    Args:
        folder: Of the model.
        commit: Of its repository, where known.
        trusted: Whether the repository's own code may run.

    Returns:
        A sentence when the repository brings code that is not used, else empty.

    Raises:
        ModelError: The configuration is not one.
        TrustError: It needs the repository's code.
    """
    raw = read_config(folder)
    files = code_files(raw)
    if trusted or not files:
        return ""
    if not known(raw.get("model_type")):
        raise needs_trust(files, CONFIG, commit)
    return f"its own code ({safe(files[0])}) was not used: transformers has this architecture"


def load_directory(
    folder: Path, origin: Origin, request: LoadRequest, progress: Progress, wait: Patience
) -> Loaded:
    """Check and load a directory that `save_pretrained` wrote.

    Args:
        folder: The directory.
        origin: Where it came from.
        request: What the user asked for and allows; `prompt` and `new_tokens` decided.
        progress: Called with what is being done.
        wait: Limits.

    Raises:
        KvtraceError: Any of the load gate's.
    """
    check_attention(request.attention)
    device = device_named(request.device)
    progress(f"reading {origin.name}: configuration and tokenizer", None)
    plan = _plan(folder, origin, request, wait)
    sketch = outline(plan.auto, plan.config, request, read_config(folder), wait)
    check_outline(sketch, plan.weights)
    dtype = dtype_named(request.dtype)
    _check_memory(sketch, plan, dtype, device)
    progress(f"reading {origin.name}: {memory.parameter_count(sketch):,} parameters", None)
    model, banner = _read(folder, plan, request, sketch)
    model = _placed(model, device)
    check_caches(model)
    if not runs_own_code(raw := read_config(folder), request.trust_remote_code):
        check_cache_to_begin(model, raw)
    card = _card(model, plan, origin, banner)
    progress(f"{origin.name} is ready", 1.0)
    return Loaded(
        model=model,
        tokenizer=plan.tokenizer,
        card=card,
        chosen=_chosen(origin, card, plan, beside(folder, model)),
        context_length=plan.context_length,
        prompt=plan.prompt,
        new_tokens=plan.new_tokens,
    )


def _plan(folder: Path, origin: Origin, request: LoadRequest, wait: Patience) -> _Plan:
    unused = judge(folder, origin.commit, request.trust_remote_code)
    weights = find_weights(folder, request.allow_pickle)
    check_beside(folder, request.allow_pickle)
    check_sizes(read_config(folder), weights)
    config = load_config(folder, request.trust_remote_code)
    text = text_part(config)
    auto = auto_class(config)
    check_counts(text)
    vocab_size = count(text, "vocab_size")
    tokenizer = read_tokenizer(folder, origin.commit, request.trust_remote_code, wait)
    prompt = encode_prompt(request.prompt, tokenizer, vocab_size)
    context = context_length(text)
    encoded = bool(getattr(config, "is_encoder_decoder", False))
    steps = steps_that_fit(prompt, request, context, apart=encoded)
    lacks = left_out(folder, encoded=encoded)
    return _Plan(auto, config, weights, tokenizer, prompt, steps, context, unused, lacks)


def _check_memory(
    sketch: nn.Module, plan: _Plan, dtype: torch.dtype | None, device: torch.device
) -> None:
    held = len(plan.prompt.ids) + plan.new_tokens
    width = dtype.itemsize if dtype else 4
    cache = memory.cache_bytes(text_part(plan.config), held, width)
    memory.check_fits(memory.resident_bytes(sketch, dtype), cache, device)


def _read(
    folder: Path, plan: _Plan, request: LoadRequest, sketch: nn.Module
) -> tuple[nn.Module, str]:
    """The model with its weights, and a banner when some are missing."""
    raw = read_config(folder)
    own_code = runs_own_code(raw, request.trust_remote_code)
    options: dict[str, object] = {"dtype": dtype_named(request.dtype) or AUTO}
    if request.attention != AUTO:
        options["attn_implementation"] = request.attention

    def read() -> tuple[nn.Module, dict[str, list[object]]]:
        with loaded_with_tables() if own_code else nullcontext():
            return plan.auto.from_pretrained(
                folder,
                config=plan.config,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                use_safetensors=not plan.weights.pickled,
                trust_remote_code=request.trust_remote_code,
                **options,
            )

    try:
        model, report = guarded("reading the weights", read)
    except ModelError as error:
        if isinstance(error.__cause__, MemoryError | torch.OutOfMemoryError):
            raise MemoryLimitError(f"out of memory while {error}; use a smaller model") from error
        if why := damaged(folder) or unread(folder, plan.weights):
            raise ModelError(why) from error.__cause__
        raise (advised(error, raw, folder) if own_code else error) from error.__cause__
    if own_code:
        put_back(model, sketch, report)
    return model.eval(), check_complete(report, request.allow_missing)


def _placed(model: nn.Module, device: torch.device) -> nn.Module:
    try:
        return model.to(device)
    except torch.OutOfMemoryError:
        raise MemoryLimitError(f"out of memory on {device}; use --device cpu") from None


def _card(model: nn.Module, plan: _Plan, origin: Origin, banner: str) -> ModelCard:
    config = plan.config
    first = next(model.parameters())
    used = getattr(getattr(model, "config", config), "_attn_implementation", None)
    return ModelCard(
        name=origin.name,
        class_name=type(model).__name__,
        architecture=str(getattr(config, "model_type", "")),
        weights=origin.commit or plan.weights.pin(),
        dtype=str(first.dtype).removeprefix("torch."),
        attention=str(used or ""),
        device=str(first.device),
        parameter_count=memory.parameter_count(model),
        weight_bytes=memory.parameter_bytes(model),
        vocab_size=count(text_part(config), "vocab_size"),
        context_length=plan.context_length,
        tokenizer=plan.tokenizer.name,
        banner=banner,
    )


def _chosen(origin: Origin, card: ModelCard, plan: _Plan, adapter: str) -> str:
    what = f"{card.class_name}, {card.dtype}, {card.attention} attention, on {card.device}"
    bare = isinstance(plan.tokenizer, ByteTokenizer)
    read = "it brings no tokenizer: the prompt is read as bytes" if bare else ""
    parts = (origin.chosen, what, adapter, plan.unused_code, read, plan.left_out)
    return "; ".join(part for part in parts if part)
