"""What a directory says of generating: which tokens end a text, and how others are chosen.

Read as data, from generation_config.json; a directory without one says it in config.json, as old
ones do.
"""

from __future__ import annotations

import json
from pathlib import Path

from kvtrace.models.hub.config import CONFIG, Json
from kvtrace.text import safe

GENERATION = "generation_config.json"
_MAX_BYTES = 1 << 20
_ENDS = "eos_token_id"
_TEXT_PARTS = ("text_config", "decoder")
# What changes the likeliest token, with the value at which it changes nothing.
_CHOOSES: dict[str, object] = {
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "bad_words_ids": [],
    "sequence_bias": {},
    "forced_bos_token_id": None,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "guidance_scale": 1.0,
    "num_beams": 1,
}


def ends(folder: Path) -> frozenset[int]:
    """Tokens that end a text, as `generate` has them."""
    config = small_json(folder / CONFIG)
    parts = (config, *(config.get(name) for name in _TEXT_PARTS))
    said = [part[_ENDS] for part in parts if isinstance(part, dict) and _ENDS in part]
    if (folder / GENERATION).is_file():
        said = [small_json(folder / GENERATION).get(_ENDS)]
    listed = said[0] if said and isinstance(said[0], list) else said[:1]
    return frozenset(each for each in listed if type(each) is int)


def left_out(folder: Path, *, encoded: bool) -> str:
    """A sentence on what `generate` would do to the likeliest tokens; empty: nothing.

    Args:
        folder: The model's directory.
        encoded: It is an encoder-decoder, whose first token is forced here too.
    """
    asked = small_json(folder / GENERATION)
    names = [
        name
        for name, none in _CHOOSES.items()
        if asked.get(name) not in (none, None) and not (encoded and name.startswith("forced"))
    ]
    if not names:
        return ""
    return f"{GENERATION} asks for {', '.join(names)}: left out, the likeliest token is taken"


def damaged(folder: Path) -> str:
    """Why generation_config.json makes no model of the directory load; empty: it is not that."""
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:  # none there, or no JSON: transformers goes on without it
        return ""
    except Exception as error:
        why = safe(f"{type(error).__name__}: {error}", 200)
        return f"{GENERATION}: no model can be loaded with it ({why}); repair or remove it"
    return ""


def small_json(path: Path) -> Json:
    """The JSON object in a file; empty when there is none that can be read."""
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        return {}
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
