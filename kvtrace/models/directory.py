"""A Hugging Face directory to a loaded model."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from kvtrace.models.loaded import Loaded, Progress
from kvtrace.models.prompts import encode_prompt, steps_that_fit
from kvtrace.models.request import LoadRequest
from kvtrace.models.spec import Source
from kvtrace.models.tokens import WrappedTokenizer
from kvtrace.trace import ModelCard
from kvtrace_fixtures import BUILT_IN


def load_directory(
    folder: Path, source: Source, request: LoadRequest, progress: Progress
) -> Loaded:
    """Load it."""
    tokenizer = WrappedTokenizer(AutoTokenizer.from_pretrained(folder, local_files_only=True))
    story = BUILT_IN.get(source.name)
    text = story.prompt if request.prompt is None and story else request.prompt
    asked = story.new_tokens if request.new_tokens is None and story else request.new_tokens
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    context = int(getattr(model.config, "max_position_embeddings", 0))
    prompt = encode_prompt(text, tokenizer, model.config.vocab_size)
    card = ModelCard(
        name=source.name,
        class_name=type(model).__name__,
        architecture=model.config.model_type,
        dtype=str(model.dtype).removeprefix("torch."),
        attention=model.config._attn_implementation,
        parameter_count=sum(each.numel() for each in model.parameters()),
        weight_bytes=sum(each.numel() * each.element_size() for each in model.parameters()),
        vocab_size=model.config.vocab_size,
        context_length=context,
        tokenizer=tokenizer.name,
    )
    progress(f"loaded {source.name}", 1.0)
    return Loaded(
        model=model.eval(),
        tokenizer=tokenizer,
        card=card,
        chosen=source.note or source.name,
        context_length=context,
        prompt=prompt,
        new_tokens=steps_that_fit(prompt, asked, context),
    )
