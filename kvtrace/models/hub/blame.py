"""Which field of a config.json it is that nothing can be built with, found by trying.

What transformers raises seldom names the field (`KeyError: 'swish9'`, a division by zero deep in
a layer). Without the field its class has a default: where that one is accepted, the field is the
cause. Nothing is known here of what any field means.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Iterator

from msgspec import Struct
from torch import nn
from transformers import CONFIG_MAPPING, DynamicCache, PreTrainedConfig

from kvtrace.configs import setting
from kvtrace.errors import KvtraceError, ModelError
from kvtrace.models.hub.config import CONFIG, Json
from kvtrace.models.patience import patiently
from kvtrace.models.tokens import guarded
from kvtrace.text import safe

_AT_MOST_S = 20.0
_NOT_TRIED = re.compile(r"^(_.*|model_type|architectures|auto_map|transformers_version)$")
_COUNTS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")

Attempt = Callable[[PreTrainedConfig], object]


class _Culprit(Struct, frozen=True):
    """A field without which it goes.

    Attributes:
        path: Its keys, the outermost first.
        found: Its value.
        default: What its class takes without it.
    """

    path: tuple[str, ...]
    found: object
    default: object

    def __str__(self) -> str:
        path = safe(".".join(self.path), 80)
        return path if self.whole else f"{path}: found {safe(repr(self.found), 60)}"

    @property
    def whole(self) -> bool:
        """Whether it is an object of many fields, of which no single one is the cause."""
        return isinstance(self.found, dict)

    @property
    def usual(self) -> str:
        """The default, as a person reads it."""
        return "none" if self.default is None else safe(repr(self.default), 60)


def check_counts(text: PreTrainedConfig) -> None:
    """Refuse a decoder of nothing: no layers, no heads, no width, no vocabulary.

    Raises:
        ModelError: Says which field of config.json says so.
    """
    for name in _COUNTS:
        value = setting(text, name)
        if isinstance(value, int) and value < 1:
            own = text.attribute_map.get(name, name)
            raise ModelError(f"{CONFIG}, {own}: found {value}, expected at least 1")


def check_cache_to_begin(model: nn.Module, raw: Json) -> None:
    """Refuse a configuration from which transformers makes no cache for its own model.

    Args:
        model: Of transformers; what drives a decoder begins with the cache that this makes.
        raw: The configuration, as parsed.

    Raises:
        ModelError: Says which field of config.json it is, where that can be found out.
    """
    able = getattr(model, "_supports_default_dynamic_cache", None)
    config = model.config
    if able is None or not able() or not isinstance(config, PreTrainedConfig):
        return
    if getattr(config, "is_encoder_decoder", False):
        return

    def begin(config: PreTrainedConfig) -> None:
        DynamicCache(config=config.get_text_config(decoder=True))

    try:
        guarded(CONFIG, lambda: begin(config))
    except ModelError as error:
        raise explained(error, raw, begin) from error


def explained(error: ModelError, raw: Json, attempt: Attempt) -> ModelError:
    """The same refusal, with the field that it is about where that can be found out.

    Args:
        error: As foreign code put it.
        raw: The configuration, as parsed.
        attempt: What failed; called with configurations that lack one field each.
    """
    cause = error.__cause__
    if cause is None:
        return error
    if type(cause).__name__ == "StrictDataclassFieldValidationError":
        return ModelError(f"{CONFIG}: {_told(cause)}")
    found = _culprits(raw, attempt)
    if not found:
        named = type(cause).__name__ == "StrictDataclassClassValidationError"
        return ModelError(f"{CONFIG}: {_told(cause)}") if named else error
    fields = ", or ".join(map(str, found[:3]))
    usual = " or ".join(one.usual for one in found[:3] if not one.whole)
    remedy = f", expected something like the usual {usual}" if usual else ""
    return ModelError(f"{CONFIG}, {fields}; no model can be built with it ({_told(cause)}){remedy}")


def _told(error: BaseException) -> str:
    """What an exception says, without the wrapping of the validators."""
    kind, text = type(error).__name__, str(error)
    if kind.startswith("StrictDataclass"):
        _, _, text = text.partition("\n")
        kind, _, text = text.strip().partition(": ")
        text = re.sub(r"<class '([\w.]+)'>", r"\1", text.partition(". Errors: ")[0])
        return safe(text, 300)
    return safe(f"{kind}: {text}", 300)


def _culprits(raw: Json, attempt: Attempt) -> list[_Culprit]:
    """Fields without which it goes, the innermost only; none when that is not to be found out."""
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return []
    until = time.monotonic() + _AT_MOST_S
    found: list[_Culprit] = []
    for path in _paths(raw):
        if any(one.path[: len(path)] == path for one in found):
            continue
        trimmed, value = _without(raw, path)

        def build(trimmed: Json = trimmed) -> PreTrainedConfig:
            config = CONFIG_MAPPING[kind].from_dict(trimmed)
            attempt(config)
            return config

        try:
            config = patiently(build, until - time.monotonic(), lambda: ModelError("too long"))
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            if isinstance(error, KvtraceError) and time.monotonic() >= until:
                break
            continue
        found.append(_Culprit(path, value, _default(config, path)))
    return found


def _paths(raw: Json) -> Iterator[tuple[str, ...]]:
    """Every field, those of inner objects before the object itself."""
    for key, value in raw.items():
        if _NOT_TRIED.match(key):
            continue
        if isinstance(value, dict):
            yield from ((key, inner) for inner in value if not _NOT_TRIED.match(inner))
        yield (key,)


def _without(raw: Json, path: tuple[str, ...]) -> tuple[Json, object]:
    """The configuration without a field, and what the field said."""
    trimmed = copy.deepcopy(raw)
    inner = trimmed
    for key in path[:-1]:
        part = inner[key]
        if isinstance(part, dict):
            inner = part
    return trimmed, inner.pop(path[-1])


def _default(config: object, path: tuple[str, ...]) -> object:
    """What a configuration says without a field."""
    for key in path:
        config = config.get(key) if isinstance(config, dict) else getattr(config, key, None)
    return config
