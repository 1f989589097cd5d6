"""Sizes of somebody's model, under whatever names, to fill the arguments of their functions.

What is found nowhere stays unknown: then their function is not called.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import nn

from kvtrace.record.driving.ways.roles import parameters_of
from kvtrace.record.driving.ways.way import Room

_CONFIGS = (
    *("config", "cfg", "args", "params", "hparams", "hp", "conf", "model_args", "model_config"),
    *("gpt_config", "opt", "options", "dims", "configuration", "hyperparameters", "settings"),
)
_NAMES = {
    "layers": "n_layers? num_layers? num_hidden_layers n_blocks? num_blocks? depth nlayers? layers "
    "n_transformer_layers? num_decoder_layers l",
    "kv_heads": "n_kv_heads? num_kv_heads? num_key_value_heads kv_heads? n_query_groups "
    "n_kv_groups? num_kv_groups? n_local_heads n_groups num_kv n_kv",
    "heads": "n_heads? num_heads? num_attention_heads nheads? heads n_attn_heads h",
    "head_dim": "head_dims? head_size d_head d_k dim_head head_width hd size_per_head dh",
    "width": "n_embd d_model hidden_size dim emb_dim embed_dim n_embed model_dim embedding_dim "
    "n_state width hidden_dim d c dmodel",
    "vocabulary": "vocab_size vocab n_vocab num_tokens n_tokens vocabulary_size ntoken",
    "context": "block_size max_position_embeddings n_ctx context_length context_len max_seq_len "
    "max_seq_length max_len max_length seq_len sequence_length context_size ctx_len n_positions "
    "max_context max_context_length max_positions n_positions window_size",
    "batch": "b bs bsz batch batch_size max_batch_size max_batch n_batch num_sequences max_bs",
    "capacity": "max_(\\w+_)?(len|length|seqlen|tokens|positions) maxlen max_size max_t s t "
    "max_context seq_len seq_length seqlen cache_len cache_size cache_length capacity size length "
    "n_ctx context_length context_len block_size ctx_len (en|de)coder_max_seq_len total_len "
    "n_tokens",
}
_ALIASES = {
    quantity: re.compile("|".join(f"({name})" for name in names.split()))
    for quantity, names in _NAMES.items()
}
_MODEL = re.compile(r"model|module|net|network|transformer|gpt|lm|llm|llama|decoder")


_LENGTH = re.compile(r".*(len|capacity|context|block_size|n_ctx).*")
_CACHE = re.compile(r".*(cache|kv|past|memory|key|value).*")


def room_inside(model: nn.Module) -> int:
    """Rows for which caches inside of a model have room, where a number of its says so; else 0."""
    told: set[int] = set()
    shapes: list[torch.Size] = []
    for module in model.modules():
        for name, value in [*vars(module).items(), *module.named_buffers(recurse=False)]:
            if type(value) is int and _LENGTH.fullmatch(name.lower()):
                told.add(value)
            elif isinstance(value, torch.Tensor) and _CACHE.fullmatch(name.lower()):
                shapes.append(value.shape)
    return max((size for one in shapes if len(one) > 2 for size in one if size in told), default=0)


class UnknownSizeError(Exception):
    """An argument that nothing is known about; the message is its name."""


@dataclass(slots=True)
class Sizes:
    """What is known of one model.

    Attributes:
        model: The one.
        capacity: Tokens a cache must hold.
        grouped: An argument named "heads" is filled with the number of kv heads.
        sequences: Rows of a batch.
    """

    model: nn.Module
    capacity: int
    grouped: bool = True
    sequences: int = 1
    _found: dict[str, int | None] = field(default_factory=dict)

    @classmethod
    def within(cls, model: nn.Module, room: Room, grouped: bool = True) -> Self:
        """Sizes of a model for a cache that must hold something."""
        return cls(model, room.tokens, grouped, room.sequences)

    def of(self, quantity: str) -> int | None:
        """A size by its name here, such as "layers" or "kv_heads"; None when unknown."""
        if quantity not in self._found:
            self._found[quantity] = None  # sizes may be derived from each other
            self._found[quantity] = self._look(quantity)
        return self._found[quantity]

    def _look(self, quantity: str) -> int | None:
        if quantity == "batch":
            return self.sequences
        if quantity == "capacity":
            return self.capacity
        pattern = _ALIASES[quantity]
        for source in self._sources():
            for name, value in _items(source):
                if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
                    continue
                if pattern.fullmatch(name.lower()):
                    return value
        return self._derived(quantity)

    def _derived(self, quantity: str) -> int | None:
        heads, width = self.of("heads"), self.of("width")
        if quantity == "layers":
            return _layers(self.model)
        if quantity == "kv_heads":
            return heads
        if quantity == "head_dim":
            return width // heads if heads and width else None
        if quantity in ("width", "vocabulary"):
            tables = [one for one in self.model.modules() if isinstance(one, nn.Embedding)]
            largest = max(tables, key=lambda one: one.num_embeddings, default=None)
            if largest is None:
                return None
            return largest.embedding_dim if quantity == "width" else largest.num_embeddings
        return None

    def _sources(self) -> Iterator[object]:
        yield from configs(self.model)
        yield self.model
        for module in self.model.modules():
            if not type(module).__module__.startswith("torch."):
                yield module
                yield from configs(module)

    def fill(
        self, function: Callable[..., object], *, all_of_it: bool = False
    ) -> dict[str, object]:
        """Arguments for a function: the required ones, and sizes among the optional.

        Args:
            function: To be called with them by keyword.
            all_of_it: Optional sizes are filled too, where they are known.

        Raises:
            UnknownSizeError: A required one is unknown.
        """
        filled: dict[str, object] = {}
        for one in parameters_of(function):
            if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
                continue
            found, value = self._argument(one)
            several = self.sequences > 1 and _ALIASES["batch"].fullmatch(one.name.lower())
            if found and (one.default is one.empty or all_of_it or several):
                filled[one.name] = value
            elif one.default is one.empty:
                raise UnknownSizeError(one.name)
        return filled

    def named(self, names: Iterable[str]) -> dict[str, object]:
        """Arguments of these names, those that are known."""
        anything = inspect.Parameter.KEYWORD_ONLY
        found = {name: self._argument(inspect.Parameter(name, anything)) for name in names}
        return {name: value for name, (known, value) in found.items() if known}

    def _argument(self, one: inspect.Parameter) -> tuple[bool, object]:
        name = one.name.lower().removeprefix("the_")
        first = next(self.model.parameters(), torch.empty(0))
        if name in ("device", "dtype"):
            return True, first.device if name == "device" else first.dtype
        if _MODEL.fullmatch(name):
            return True, self._part(one)
        if name in _CONFIGS or "config" in name:
            held = next(iter(configs(self.model)), None)
            return held is not None, held
        for quantity in ("batch", "capacity", "layers", "kv_heads", "heads", "head_dim", "width"):
            if _ALIASES[quantity].fullmatch(name):
                wanted = "kv_heads" if quantity == "heads" and self.grouped else quantity
                value = self.of(wanted)
                return value is not None, value
        return False, None

    def _part(self, one: inspect.Parameter) -> nn.Module:
        """The module that a parameter asks for: the model, or its part of that very name."""
        part = getattr(self.model, one.name, None)
        named = type(self.model).__name__ in str(one.annotation)
        return part if isinstance(part, nn.Module) and not named else self.model


def _layers(model: nn.Module) -> int | None:
    """Length of the longest list of modules of one class, the user's own before torch's."""
    lists = [one for one in model.modules() if isinstance(one, nn.ModuleList | nn.Sequential)]
    alike = [one for one in lists if len({type(each) for each in one}) == 1]
    own = [one for one in alike if not type(one[0]).__module__.startswith("torch.nn.modules.")]
    return max(map(len, own or alike or lists), default=None)


def configs(module: nn.Module) -> list[object]:
    """Objects and dicts that a module keeps its settings in."""
    found = [vars(module).get(name) for name in _CONFIGS]
    found += [
        value
        for name, value in vars(module).items()
        if ("config" in type(value).__name__.lower() or "config" in name.lower())
    ]
    made = [one for one in found if one is not None and not isinstance(one, str | int | float)]
    return list({id(one): one for one in made}.values())


def _items(source: object) -> Iterator[tuple[str, object]]:
    if isinstance(source, Mapping):
        yield from ((str(name), value) for name, value in source.items())
        return
    held = getattr(source, "__dict__", None)
    if held is None:  # slots
        names = getattr(type(source), "__slots__", ())
        yield from ((name, getattr(source, name, None)) for name in names)
        return
    yield from list(held.items())
    # class attributes of a config count too, as in `class Config: n_layer = 4`
    if not isinstance(source, nn.Module):
        for owner in type(source).__mro__[:-1]:
            yield from ((name, value) for name, value in vars(owner).items() if name not in held)
