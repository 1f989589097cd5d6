"""A model as it was before its first watched call, and what that call was given.

A model that keeps its cache inside can't be asked again: the question would change it. Copies can:
they share the weights, and everything else is their own. Each recomputation gets a fresh one.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping
from contextlib import suppress

import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec

from kvtrace.record.capture.attention.levels import looks_like_attention
from kvtrace.record.capture.tokens.bare_rows import rows_in
from kvtrace.record.capture.tokens.inputs import is_source, tokens_in
from kvtrace.record.driving.entrance import behind
from kvtrace.record.driving.ways.roles import signature_of
from kvtrace.record.lanes.as_it_was.private import Copier
from kvtrace.record.lanes.as_it_was.tensors import Tensors
from kvtrace.record.lanes.given.first_call import FirstCall
from kvtrace.record.lanes.given.written_to import written_to
from kvtrace.record.parts import part_in
from kvtrace.record.version import version
from kvtrace.record.whose import of_frameworks, of_transformers

_CONSTANT = re.compile(
    r"mask|bias|tril|causal|freq|rope|rotary|cos|sin|alibi|slopes|pos|table|pe$", re.IGNORECASE
)
_TRIES = 3


class Snapshot(Struct, frozen=True):
    """A copy that nobody runs.

    Attributes:
        model: It.
        call: Its first call.
        odd: What could not be copied and is shared with the user's model.
        zeros: Addresses of its memory that holds zeros only.
        shared: Large tensors that look constant, and how often each had been changed.
    """

    model: nn.Module
    call: FirstCall
    odd: tuple[str, ...]
    zeros: frozenset[int]
    shared: tuple[tuple[Tensor, int], ...]

    def fresh(self, dtype: torch.dtype | None = None) -> tuple[nn.Module, FirstCall]:
        """A copy to be run once, and the arguments that belong to it.

        Args:
            dtype: Floating tensors are taken in this one, weights too.
        """
        copier = Copier(
            Tensors(
                self.model.parameters(), dtype=dtype, zeros=self.zeros, constant=self._is_shared
            )
        )
        model, arguments = copier.of((self.model, dict(self.call.arguments)))
        call = self.call
        return model, replace(call, arguments=arguments)

    def of_tokens(self, new: int, more: int, after: Mapping[str, object]) -> Snapshot:
        """The same, once its first call is over.

        Args:
            new: Rows that it made.
            more: Of them, those of no id.
            after: What it was given, as that is now.
        """
        call = self.call if more else replace(self.call, new=new)
        return replace(self, call=replace(call, written=written_to(call.arguments, after)))

    def _is_shared(self, tensor: Tensor) -> bool:
        return any(tensor is one for one, _ in self.shared)

    @property
    def changed(self) -> bool:
        """Whether something that looked constant has changed since."""
        return any(version(one) != before for one, before in self.shared)


def take(
    model: nn.Module,
    arguments: Mapping[str, object],
    *,
    placed: tuple[str, ...] = (),
    weights_are_given: bool = False,
) -> Snapshot | str:
    """The snapshot, or why there is none.

    Args:
        model: About to be called for the first time.
        arguments: With which, by name.
        placed: Names of those that are given by place.
        weights_are_given: They are no parameters of it: whatever is large is believed to be one,
            or another table that stays.
    """
    found = tokens_in(arguments) or rows_in(arguments)
    if found is None:
        return "its first call was given no token ids"
    name, tokens = found
    given = part_in(arguments, name)
    shape: tuple[int, ...] = tuple(given.shape) if isinstance(given, Tensor) else ()
    if isinstance(given, list):
        shape = (len(given),)
    names = {id(one): name for name, one in model.named_buffers()}

    def constant(tensor: Tensor) -> bool:
        whole = tensor.dtype == torch.bool or tensor.is_complex()
        return (
            weights_are_given
            or whole
            or _CONSTANT.search(names.get(id(tensor), "").rpartition(".")[2]) is not None
        )

    copier = Copier(Tensors(model.parameters(), constant=constant))
    try:
        copied, kept = copier.of((model, dict(arguments)))
    except Exception as error:  # whatever a class of the user's does when it is copied
        return f"it can't be copied, {type(error).__name__}: {error}".splitlines()[0]
    call = FirstCall(name, tokens.shape[1], shape, kept, parameters_of(model), placed)
    if tokens.is_floating_point():
        call = replace(call, rows=tuple(n for n, one in arguments.items() if one is tokens))
    return Snapshot(
        copied,
        call,
        tuple(dict.fromkeys(copier.odd)),
        frozenset(copier.tensors.zeros),
        tuple((one, version(one)) for one in copier.tensors.shared),
    )


def take_whole(
    model: nn.Module, tokens: Tensor | None, arguments: Mapping[str, object]
) -> Snapshot | None:
    """The whole forward of a model that is called by another method, one token at a time say.

    Args:
        model: About to be called for the first time.
        tokens: With which, [sequences, new].
        arguments: That it is given, by name: of them, what an encoder reads.
    """
    whole = behind(model)
    if whole is None or tokens is None or type(whole).forward is nn.Module.forward:
        return None
    signature = signature_of(whole)
    sources = (one for name, one in arguments.items() if is_source(name, one))
    read = {one.name: text for one, text in zip(signature.of("source"), sources, strict=False)}
    taken = "" if signature.ids is None else take(whole, {**read, signature.ids.name: tokens})
    return None if isinstance(taken, str) else taken


def copied(model: nn.Module) -> nn.Module:
    """A copy with the same weights, and a configuration and all else of its own.

    Made while other threads may run the model.
    """
    for _ in range(_TRIES):
        with suppress(RuntimeError):  # a dictionary changed while it was read
            return _copied(model)
    return _copied(model)


def _copied(model: nn.Module) -> nn.Module:
    made: nn.Module = Copier(Tensors(model.parameters())).of(model)
    known: dict[int, object] = {}
    for part in made.modules():
        if "config" in vars(part):
            part.config = copy.deepcopy(part.config, known)
    return made


def keeps_nothing(model: nn.Module) -> bool:
    """Whether a model is known to keep nothing between calls: its cache is an argument.

    Attention that somebody else has put into a model of transformers may keep what it wants.
    """
    if not of_transformers(type(model)):
        return False
    parts = (one for one in model.modules() if looks_like_attention(type(one)))
    return all(map(_is_theirs, parts))


def _is_theirs(module: nn.Module) -> bool:
    """Whether a module does what transformers or torch wrote."""
    code = [type(module), inspect.unwrap(type(module).forward)]
    added = "forward" in vars(module)
    return not added and all(map(of_frameworks, code))


def parameters_of(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """What its forward takes, by name; nothing where that can't be read."""
    try:
        found = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return {}
    spec = getattr(model, "_in_spec", None)
    if not isinstance(spec, TreeSpec) or not spec.num_children:
        return found
    # an exported model takes by place, and never by name, what it was exported with by place
    first = list(found)[: spec.child(0).num_children]
    return {
        name: one.replace(kind=one.POSITIONAL_ONLY) if name in first else one
        for name, one in found.items()
    }
