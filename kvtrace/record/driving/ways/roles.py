"""What the parameters of somebody's forward are for: told by their names, defaults and annotations.

A role is a guess; whoever uses it tries it and looks at what comes out.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable
from typing import Literal, Protocol

import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor, nn

from kvtrace.record.written import file_of

Role = Literal["ids", "cache", "position", "flag", "mask", "source", "other"]

_IDS = re.compile(
    r"(decoder_)?(input_?)?(ids|idx|tokens?|tok|toks|token_?ids|token_?idx)s?"
    r"|(in|x|seq|text)_(ids|idx|tokens?)|input_?tokens?|indices|prev_output_tokens|captions?|caps"
)
_PLAIN_IDS = re.compile(
    r"x|xs|inputs?|inp|in|seqs?|sequences?|text|index|src|source|tgt|trg|data|t"
)
_TEXTS = r"(ids|input|inputs|input_ids|tokens|token_ids|seqs?|sequences?|text|x)"
_SOURCE = re.compile(rf"src|sources?|(src|source|enc|encoder)_?{_TEXTS}(_\w+)?|(src|source)_in")
_TARGET = re.compile(
    rf"tgt|trg|targets?|(tgt|trg|target|dec|decoder)_?{_TEXTS}(_\w+)?|(tgt|trg|target)_in"
    r"|prev_output_tokens"
)
_DECODER = re.compile(rf"(dec|decoder)_{_TEXTS}")
LABELS = re.compile(r"targets?|labels?|y|ys|loss_mask|label_ids")
_POSITION = re.compile(
    r"(start|input|cache|cur|curr|current|seq|tokens?|segment|begin|first|new|query|abs|absolute"
    r"|rope|rotary)_?pos(ition)?s?(_?(ids?|idx|index|indices))?"
    r"|pos(ition)?s?(_?ids?|_?idx|_?offset|ition)?|(\w+_)?offset|n_?past|index_?pos"
    r"|(past|cache|cached|kv|prefix|prev|past_kv|past_key_values|seen)_?(len|length|size|lens"
    r"|lengths|seqlens|seqlen|tokens)|start(_?idx|_?index)?|step|timestep|cur_?len|t0|prompt_len"
)
_CACHE = re.compile(
    r"(\w+_)?(past|caches?|kvs?|kv_?caches?|past_?kvs?|past_?key_?values?|layer_?pasts?|presents?"
    r"|mems|incremental_state|intermediates?|states?|hidden|hiddens|hx|inference_params"
    r"|memory_cache|history)(_(kvs?|k|v|list|dict|key|value|keys|values|params|states?))?"
    r"|[kv]_?caches?|cache_[kv]|past_[kv]|past_(keys?|values?)"
)
_ENCODED = re.compile(r"enc(oder)?_(hidden_?)?states?")
_FLAG = re.compile(
    r"(use|return|output|with|store|update|enable|do|is|keep|get)_\w+|incremental|inference|caching"
    r"|(kv_)?cache_?(enabled|on)|decode|decoding|generating|training|train|return_dict|prefill"
)
CACHE_FLAG = re.compile(
    r"(use|return|output|with|store|update|enable|keep|get)_?(\w*_)?(kv|cache|caches|caching|past"
    r"|pasts|presents?|intermediates?|states?|mems|kvs|key_values|kv_cache)(_\w+)?"
    r"|incremental|caching|(kv_)?cache_?(enabled|on)|cache|kv_cache|(is_)?inference(_mode)?"
    r"|(is_)?decod(e|ing)|use_incremental\w*|generating"
)
_NUMBERS = (int, float)


class Given(Protocol):
    """What a parameter is given beside the tokens, told to people as a string."""

    def form(self, before: int, new: int, device: torch.device) -> object:
        """Its value for so many new tokens after so many before."""


class Beside(Struct, frozen=True):
    """Numbers of some shape, the same ones at every call.

    Attributes:
        shape: Of them, with one sequence.
        said: What they stand for.
    """

    shape: tuple[int, ...]
    said: str

    def __str__(self) -> str:
        return f"{self.said} {list(self.shape)}"

    def form(self, before: int, new: int, device: torch.device) -> Tensor:
        """They, between -1 and 1, whatever the tokens are."""
        return torch.linspace(-1, 1, math.prod(self.shape), device=device).reshape(self.shape)


class Parameter(Struct, frozen=True):
    """One parameter of a forward.

    Attributes:
        name: As declared.
        role: What it seems to be for.
        required: Without a default.
        default: None when there is none.
        annotation: As text, empty when there is none.
        positional: Can only be passed by place.
        told: The role is known, or tried, whatever the name says.
        beside: What it is given, of what the model reads beside its tokens.
    """

    name: str
    role: Role
    required: bool
    default: object = None
    annotation: str = ""
    positional: bool = False
    told: bool = False
    beside: Given | None = None

    @property
    def wants_number(self) -> bool:
        """Declared as a plain number."""
        plain = isinstance(self.default, _NUMBERS) and not isinstance(self.default, bool)
        return (
            plain
            or re.fullmatch(r"int|float|Optional\[int\]|int ?\| ?None", self.annotation) is not None
        )

    @property
    def wants_tensor(self) -> bool:
        """Declared as a tensor."""
        return "Tensor" in self.annotation

    @property
    def turns_cache_on(self) -> bool:
        """A flag whose name speaks of a cache, or that is known to."""
        named = CACHE_FLAG.fullmatch(self.name.lower()) is not None
        return self.role == "flag" and (self.told or named)


class Signature(Struct, frozen=True):
    """The parameters of a forward.

    Attributes:
        name: Of what is called, for people: `GPT.forward`.
        parameters: In order; without `*args` and `**kwargs`.
        open: It takes any arguments (`*args`, `**kwargs`): what it declares is not all.
        place: Where it is written, `gpt.py:12`; empty: nowhere a person could look.
    """

    name: str
    parameters: tuple[Parameter, ...]
    open: bool = False
    place: str = ""

    def of(self, role: Role) -> tuple[Parameter, ...]:
        """The parameters with a role, in order."""
        return tuple(one for one in self.parameters if one.role == role)

    @property
    def ids(self) -> Parameter | None:
        """The one that takes token ids."""
        return next(iter(self.of("ids")), None)

    def __str__(self) -> str:
        shown = [one.name if one.required else f"{one.name}=…" for one in self.parameters]
        return f"{self.name}({', '.join([*shown, *(['…'] if self.open else [])])})"


def signature_of(module: nn.Module) -> Signature:
    """The forward's parameters; a wrapper that passes on anything is looked through."""
    name = f"{type(module).__name__}.forward"
    declared = _declared(module)
    names = [one for one in declared if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    is_open = len(names) < len(declared)
    if is_open and not names and (inner := inner_of(module)) is not None:
        return Signature(name, signature_of(inner).parameters, True, _place(module))
    if not names and is_open:
        anything = (Parameter("ids", "ids", True, positional=True),)
        return Signature(name, anything, True, _place(module))
    return Signature(name, with_roles(names), is_open, _place(module))


def _place(module: nn.Module) -> str:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return f"{file_of(code)}:{code.co_firstlineno}" if code is not None else ""


def named_as_ids(name: str) -> bool:
    """Whether a name says that ids are meant."""
    return _IDS.fullmatch(name.lower()) is not None


def widened(signature: Signature, names: Iterable[str]) -> Signature:
    """With parameters for names that are not declared, where `**kwargs` takes them.

    A position that is left out is the first one.
    """
    ids, declared = signature.ids, {one.name for one in signature.parameters}
    beyond = [one for one in names if one not in declared]
    if not signature.open or ids is None or ids.positional or not beyond:
        return signature
    kind = inspect.Parameter.KEYWORD_ONLY
    roles = [_role(inspect.Parameter(one, kind, default=None)) for one in beyond]
    more = tuple(
        Parameter(name, role, required=False, default=0 if role == "position" else None)
        for name, role in zip(beyond, roles, strict=True)
    )
    return replace(signature, parameters=(*signature.parameters, *more))


def inner_of(module: nn.Module) -> nn.Module | None:
    """The module that a wrapper wraps: the only child, or the one by a wrapper's usual name."""
    for name in ("_orig_mod", "module", "model", "net", "_model", "base_model", "wrapped"):
        found = getattr(module, name, None)
        if isinstance(found, nn.Module) and found is not module:
            return found
    children = list(module.children())
    return children[0] if len(children) == 1 else None


def _declared(module: nn.Module) -> list[inspect.Parameter]:
    compiled = getattr(module, "_orig_mod", None)
    if isinstance(compiled, nn.Module):
        return _declared(compiled)
    schema = getattr(getattr(module, "forward", None), "schema", None)
    if schema is not None:  # a scripted module has no Python signature
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return [
            inspect.Parameter(
                one.name,
                kind,
                default=one.default_value if one.has_default_value() else inspect.Parameter.empty,
                annotation=str(one.type),
            )
            for one in schema.arguments[1:]
        ]
    return parameters_of(module.forward)


def parameters_of(function: Callable[..., object]) -> list[inspect.Parameter]:
    """Of any callable; empty when Python can't say."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []


def with_roles(names: list[inspect.Parameter]) -> tuple[Parameter, ...]:
    """What each parameter is for, in order; without `*args` and `**kwargs`."""
    places = {one.name: _role(one) for one in names}
    required = [one.name for one in names if one.default is one.empty]
    chosen = _ids_among(names, places, required)
    target = next((one for one in names if _is_target(one, required)), None)
    source = _source_among(names, target)
    if source is not None and target is not None:
        chosen = target.name
        places[source.name] = "source"
    elif source is not None and chosen != source.name and {source.name, chosen} <= {*required}:
        places[source.name] = "source"
    if chosen is not None:
        places[chosen] = "ids"
    return tuple(
        Parameter(
            one.name,
            places[one.name],
            one.default is one.empty,
            None if one.default is one.empty else one.default,
            _annotation(one.annotation),
            one.kind is one.POSITIONAL_ONLY,
        )
        for one in names
    )


def _is_target(one: inspect.Parameter, required: list[str]) -> bool:
    """Whether it takes what a decoder reads; where it may be left out, its name must say so."""
    name = one.name.lower()
    says = _TARGET if one.name in required else _DECODER
    return says.fullmatch(name) is not None


def _source_among(
    names: list[inspect.Parameter], target: inspect.Parameter | None
) -> inspect.Parameter | None:
    """The parameter for what an encoder reads; beside a decoder's, the first that takes ids."""
    told = next((one for one in names if _SOURCE.fullmatch(one.name.lower())), None)
    if told is not None or target is None or LABELS.fullmatch(target.name.lower()):
        return told
    others = [one for one in names if one is not target and one.default is one.empty]
    return next((one for one in others if _IDS.fullmatch(one.name.lower())), None)


def _ids_among(
    names: list[inspect.Parameter], places: dict[str, Role], required: list[str]
) -> str | None:
    """The parameter for ids: by name, else the first that is for nothing else."""
    # what must be given first is no less likely than what may be left out
    first = names[0].name if names and names[0].name in required else ""
    begins = _PLAIN_IDS.fullmatch(first.lower()) is not None
    for pattern in (_IDS, _PLAIN_IDS):
        for one in names:
            if begins and pattern is _IDS and one.name not in required:
                continue
            if pattern.fullmatch(one.name.lower()) and not isinstance(one.default, bool):
                return one.name
    free = [name for name in required if places[name] == "other"]
    return next(iter([*free, *required]), None)


def _role(one: inspect.Parameter) -> Role:
    name, annotation = one.name.lower(), _annotation(one.annotation)
    if isinstance(one.default, bool) or annotation in ("bool", "Optional[bool]", "bool | None"):
        return "flag"
    if "mask" in name:
        return "mask"
    if LABELS.fullmatch(name):
        return "other"
    if _POSITION.fullmatch(name):
        return "position"
    if _CACHE.fullmatch(name) and not name.startswith(("use_", "return_", "output_")):
        return "other" if _ENCODED.fullmatch(name) else "cache"
    return "flag" if _FLAG.fullmatch(name) else "other"


def _annotation(annotation: object) -> str:
    """As text: a class by its name, anything else as it was written."""
    if annotation is inspect.Parameter.empty:
        return ""
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
