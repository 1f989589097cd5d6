"""The tokenizer of a directory, or bytes when it brings none."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

from transformers import AutoTokenizer

from kvtrace.errors import ModelError
from kvtrace.models.hub.config import code_files, needs_trust
from kvtrace.models.hub.generation import ends, small_json
from kvtrace.models.loaded import Tokenizer
from kvtrace.models.patience import Patience, patiently
from kvtrace.models.tokens import ByteTokenizer, HubTokenizer, WrappedTokenizer, guarded
from kvtrace.text import safe

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
_SETTINGS = "tokenizer_config.json"
_READERS = {"SentencePiece": ("sentencepiece", "protobuf"), "tiktoken": ("tiktoken",)}
_PROTOBUF = b"\n"
"""First byte of a SentencePiece file; one of tiktoken's is lines of base64."""


def read_tokenizer(folder: Path, commit: str, trusted: bool, wait: Patience) -> Tokenizer:
    """Read it under a time limit, since tokenizer files hold patterns and rules of their own.

    Args:
        folder: The model's directory.
        commit: Of its repository, where known.
        trusted: Whether the repository's own code may run.
        wait: Reading takes at most `build_s`.

    Raises:
        ModelError: It is there and can't be read.
        TrustError: It needs the repository's code.
    """
    if not any((folder / name).is_file() for name in _FILES):
        return ByteTokenizer(ends(folder))
    endless = ModelError(f"tokenizer: reading it took more than {wait.build_s:.0f} s")

    def read() -> HubTokenizer:
        return AutoTokenizer.from_pretrained(  # type: ignore[no-any-return]
            folder, trust_remote_code=trusted, local_files_only=True
        )

    try:
        inner = guarded("tokenizer", lambda: patiently(read, wait.build_s, lambda: endless))
    except ModelError:
        if why := _damaged(folder) or _lacks(folder):
            raise ModelError(why) from None
        files = code_files(small_json(folder / _SETTINGS))
        if files and not trusted:
            raise needs_trust(files, _SETTINGS, commit) from None
        raise
    return WrappedTokenizer(inner, ends(folder))


def _damaged(folder: Path) -> str:
    """Which of a tokenizer's files is no JSON, and why; empty: all are, or there is none."""
    for name in _FILES:
        if name.endswith(".json") and (folder / name).is_file():
            try:
                json.loads((folder / name).read_bytes())
            except (ValueError, RecursionError) as error:
                return f"{name}: not JSON ({safe(str(error), 100)}); download the file again"
    return ""


def _lacks(folder: Path) -> str:
    """Which packages are not installed that its packed vocabulary needs; empty: all are."""
    packed = [name for name in _FILES if name.endswith(".model") and (folder / name).is_file()]
    if not packed:
        return ""
    with (folder / packed[0]).open("rb") as file:
        kind = "SentencePiece" if file.read(1) == _PROTOBUF else "tiktoken"
    lacking = [name for name in _READERS[kind] if not _installed(name)]
    if not lacking:
        return ""
    names = " ".join(lacking)
    return f"{packed[0]}: a {kind} vocabulary, which needs {names} to be read; pip install {names}"


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
