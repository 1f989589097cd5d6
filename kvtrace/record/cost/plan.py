"""Which modules of a model multiply matrices, found once before it runs."""

from __future__ import annotations

import dis
import inspect
import opcode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn

from kvtrace.record.processes.local import address, here

Owner = tuple[str, str, bool]
"""Path of the owner of a parameter, its name, and whether the owner is no plain linear."""


def linear_sizes(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) features of a module that is one matrix product and nothing else, or None.

    Known by its attributes, so that quantised layers count too: `in_features`/`out_features` as
    in `nn.Linear`, or transformers' Conv1D with `nx`/`nf`. Of a matrix that several processes
    share, the part that is here counts; of one that was exchanged since, as a head is for another
    vocabulary, what is there.
    """
    if module._modules or not module._parameters.keys() <= {"weight", "bias"}:
        return None
    for first, second in (("in_features", "out_features"), ("nx", "nf")):
        entering, leaving = (_said(module, first), _said(module, second))
        if isinstance(entering, int) and isinstance(leaving, int):
            weight = module._parameters.get("weight")
            if weight is None or weight.ndim != 2:
                return entering, leaving
            rows, columns = here(weight).shape
            there = (columns, rows) if first == "in_features" else (rows, columns)
            # packed numbers have a shape that is neither
            kept = here(weight) is not weight or entering == there[0] or leaving == there[1]
            return there if kept else (entering, leaving)
    return None


def _said(module: nn.Module, name: str) -> object:
    """An attribute of a module or its class, None without it; parts of it are not asked for."""
    found: object = vars(module).get(name)
    return getattr(module, name) if found is None and hasattr(type(module), name) else found


def multiplies_its_own(module: nn.Module) -> bool:
    """Whether a module may multiply parameters or buffers that it holds itself."""
    parameters = [one for one in module._parameters.values() if one is not None]
    buffers = [one for one in module._buffers.values() if one is not None]
    floats = any(one.ndim and one.is_floating_point() for one in buffers)
    if isinstance(module, nn.Embedding) or not (parameters or floats):
        return False
    norm = not module._modules and parameters and all(one.ndim <= 1 for one in parameters)
    return not norm


_BINARY = dis.opmap["BINARY_OP"]
_MATRIX_MULTIPLY = {
    number for number, (_, sign) in enumerate(getattr(opcode, "_nb_ops", ())) if sign in ("@", "@=")
}
_PRODUCTS = {"matmul", "bmm", "baddbmm", "einsum", "mm", "addmm", "tensordot", "linear", "conv1d"}


def hides_products(module: nn.Module, *, own: bool) -> bool:
    """Whether a module multiplies in a way that hooks on its parts miss.

    Its own code names a product; or it holds matrices (`own`) and others use it by methods other
    than `forward`; or it is a convolution, whose weights are often applied by somebody's kernel.
    """
    if not module._modules:
        return isinstance(module, nn.modules.conv._ConvNd)
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    if code is None or not _PRODUCTS.isdisjoint(code.co_names) or _multiplies(code.co_code):
        return code is not None
    classes = type(module).__mro__[: type(module).__mro__.index(nn.Module)] if own else ()
    names = {name for cls in classes for name, made in vars(cls).items() if callable(made)}
    return any(not name.startswith("_") and name != "forward" for name in names)


@lru_cache(maxsize=1 << 12)
def _multiplies(code: bytes) -> bool:
    """Whether bytecode uses the operator `@`, or may."""
    pairs = {bytes((_BINARY, argument)) for argument in _MATRIX_MULTIPLY}
    return any(code[at : at + 2] in pairs for at in range(0, len(code), 2))


@dataclass(frozen=True)
class Plan:
    """How to watch a model's matrix products.

    Attributes:
        model: The model.
        whole: Count every operator instead of trusting module hooks: for code that may call
            `.forward` around them.
        linears: (path, module, in features, out features) of plain linear layers.
        own: (path, module) of modules that multiply parameters or buffers of their own.
        embeddings: Paths of embeddings.
    """

    model: nn.Module
    whole: bool
    linears: tuple[tuple[str, nn.Module, int, int], ...]
    own: tuple[tuple[str, nn.Module], ...]
    embeddings: frozenset[str]

    @cached_property
    def parameters(self) -> tuple[tuple[str, str, Tensor, int], ...]:
        """(path, name, parameter, address), shared ones once; of each the part that is here."""
        found: dict[int, tuple[str, str, Tensor, int]] = {}
        for full, parameter in self.model.named_parameters():
            path, _, name = full.rpartition(".")
            part = here(parameter)
            found[id(part)] = (path, name, part, address(part))
        return tuple(found.values())

    @cached_property
    def weights(self) -> Mapping[int, Owner]:
        """Address of each parameter → whose it is."""
        found: dict[int, Owner] = {}
        for path, name, parameter, at in self.parameters:
            found.setdefault(at, (path, name, parameter.ndim > 1 and path not in self.plain))
        found.pop(0, None)
        return found

    @cached_property
    def matrices(self) -> Mapping[tuple[int, ...], list[tuple[Owner, Tensor]]]:
        """Shape → parameters, as they lie and as linear layers multiply them: transposed."""
        found: dict[tuple[int, ...], list[tuple[Owner, Tensor]]] = {}
        for path, name, parameter, at in self.parameters:
            if parameter.ndim == 2 and at:
                owner, matrix = (path, name, path not in self.plain), parameter.detach()
                for one in (matrix, matrix.t()):
                    found.setdefault(tuple(one.shape), []).append((owner, one))
        return found

    @cached_property
    def absent(self) -> tuple[tuple[str, nn.Module], ...]:
        """(path, module) whose parameters are in memory only while it runs: offloaded ones."""
        if not any(part.is_meta for _, _, part, _ in self.parameters):
            return ()
        return tuple(
            (path, module)
            for path, module in self.model.named_modules()
            if any(one is not None and one.is_meta for one in module._parameters.values())
        )

    @cached_property
    def matrix_owners(self) -> frozenset[str]:
        """Paths of modules that hold matrices of their own and are no plain linear layer."""
        matrices = (path for path, _, one, _ in self.parameters if one.ndim > 1)
        return frozenset(matrices) - self.plain

    @cached_property
    def plain(self) -> frozenset[str]:
        """Paths of plain linear layers and embeddings."""
        return frozenset(path for path, *_ in self.linears) | self.embeddings


def plan(model: nn.Module, *, whole: bool) -> Plan:
    """Sort the modules of a model."""
    linears: list[tuple[str, nn.Module, int, int]] = []
    own: list[tuple[str, nn.Module]] = []
    embeddings: list[str] = []
    hides: dict[tuple[type[nn.Module], bool], bool] = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # nobody can look into it, or hook it
            whole = True
            continue
        sizes = linear_sizes(module)
        if sizes is not None:
            if all(sizes):  # tiny models are left without width where sizes are rounded down
                linears.append((path, module, *sizes))
            continue
        if isinstance(module, nn.Embedding):
            embeddings.append(path)
        mine = multiplies_its_own(module)
        if mine:
            own.append((path, module))
            whole = whole or not path
        kind = (type(module), mine)
        if kind not in hides:
            hides[kind] = hides_products(module, own=mine)
    whole = whole or any(hides.values())
    return Plan(model, whole, tuple(linears), tuple(own), frozenset(embeddings))
