"""What a file is that is no trace, told from how it starts, and what to do about it."""

from __future__ import annotations

from kvtrace.files.layout import HEADER_BYTES, MAGIC

_AS_TEXT = "a trace that was copied as text, which changed its bytes"
_AGAIN = "Copy it again as binary."
_UNPACK = "Unpack it first."
_OTHERWISE = "Give the name of a .kvt file; of a damaged one, `kvtrace recover` saves what is left."

_WEIGHTS = "Traces are made of a model: kvtrace record MODEL PROMPT."

_STARTS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "Run `git lfs pull`."),
    (b"\x1f\x8b", "compressed with gzip", _UNPACK),
    (b"PK\x03\x04", "a zip archive", _UNPACK),
    (b"\xfd7zXZ\0", "compressed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
    (b"BZh", "compressed with bzip2", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"<!doctype", "a web page", "Download the file itself."),
    (b"<html", "a web page", "Download the file itself."),
    (b"\x89kvt", _AS_TEXT, _AGAIN),
    (b"\tkvt", _AS_TEXT, _AGAIN),
    (b"\xc2\x89kvt", _AS_TEXT, _AGAIN),
    (b"\xef\xbb\xbf\x89kvt", _AS_TEXT, _AGAIN),
    (b"\xef\xbb\xbf\xc2\x89kvt", _AS_TEXT, _AGAIN),
    (b"\xef\xbf\xbdkvt", _AS_TEXT, _AGAIN),
    (b"\xff\xfe\x89\0k\0v\0t\0", _AS_TEXT, _AGAIN),
    (b"\xfe\xff\0\x89\0k\0v\0t", _AS_TEXT, _AGAIN),
)


def foreign(raw: bytes) -> str:
    """What a file is, and what to do, as two sentences.

    Args:
        raw: Its first 64 bytes, fewer where it has fewer.
    """
    if not raw:
        return "it is empty. Use another copy, or record again."
    if len(raw) < HEADER_BYTES and MAGIC.startswith(raw[: len(MAGIC)]):
        return f"a trace cut off after {len(raw)} bytes. Use another copy, or record again."
    start = raw.lower()
    if _holds_weights(raw):
        return f"it holds weights of a model. {_WEIGHTS}"
    for known, found, advice in _STARTS:
        if start.startswith(known.lower()):
            return f"it is {found}. {advice}"
    if not any(raw):
        return f"it starts with zeros. {_OTHERWISE}"
    return f"it does not start like one. {_OTHERWISE}"


def _holds_weights(raw: bytes) -> bool:
    """Whether it is a checkpoint of torch, safetensors, or packed for llama.cpp."""
    torchs = raw.startswith(b"PK") and b"/data.pkl" in raw
    return torchs or raw[8:10] == b'{"' or raw.startswith(b"GGUF")
