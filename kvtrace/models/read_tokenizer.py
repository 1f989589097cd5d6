"""The tokenizer of a directory, or bytes when it brings none."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoTokenizer

from kvtrace.errors import ModelError
from kvtrace.models.loaded import Tokenizer
from kvtrace.models.patience import Patience, patiently
from kvtrace.models.tokens import ByteTokenizer, WrappedTokenizer, guarded

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
_GENERATION = "generation_config.json"
_MAX_BYTES = 1 << 20


def read_tokenizer(folder: Path, trusted: bool, wait: Patience) -> Tokenizer:
    """Read it under a time limit, since tokenizer files hold patterns and rules of their own.

    Args:
        folder: The model's directory.
        trusted: Whether the repository's own code may run.
        wait: Reading takes at most `build_s`.

    Raises:
        ModelError: It is there and can't be read.
    """
    if not any((folder / name).is_file() for name in _FILES):
        return ByteTokenizer()
    endless = ModelError(f"tokenizer: reading it took more than {wait.build_s:.0f} s")
    inner = guarded(
        "tokenizer",
        lambda: patiently(
            lambda: AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trusted, local_files_only=True
            ),
            wait.build_s,
            lambda: endless,
        ),
    )
    return WrappedTokenizer(inner, _ends(folder))


def _ends(folder: Path) -> frozenset[int]:
    """Tokens that end a text by the generation configuration; none when it can't be read."""
    path = folder / _GENERATION
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        return frozenset()
    try:
        ends = json.loads(path.read_bytes())["eos_token_id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return frozenset()
    listed = ends if isinstance(ends, list) else [ends]
    return frozenset(each for each in listed if type(each) is int)
