"""One forward's matrix products, seen while it runs.

Weight-bearing modules get a light forward hook; a module that multiplies parameters or buffers of
its own (experts, routers, rotary tables) runs under a counting mode, as does the whole of a model
that may call `.forward` around its hooks. Neither changes what is computed. All of it is gone when
the forward ends. Other threads that call the model meet the hooks too, and are none of its matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from threading import get_ident
from typing import Any
from weakref import ReferenceType, ref

import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from kvtrace.record.cost.copies import is_copy
from kvtrace.record.cost.formulas import fused_pairs, matters, picks, product_flops
from kvtrace.record.cost.plan import Owner, Plan
from kvtrace.record.modes import OPERATOR_MODES, beneath, unseen_by_modes
from kvtrace.record.processes.local import address

Key = tuple[str, str, int]
"""Path of the owner, name of its weight, 0; or, for a product of activations: path, "", ordinal."""


class Product(Struct, frozen=True):
    """One matrix product.

    Attributes:
        key: Which; the same in every forward.
        flops: What it cost.
        calls_before: Attention calls seen before it in this forward.
        rows: Rows it processed; 0 for a product of activations.
        in_features: Features of a row; 0 for a product of activations.
        expert: Inside a module that holds matrices of its own, such as experts.
        pairs: Of a query and a key, where it is a whole fused attention; 0 for a product.
    """

    key: Key
    flops: int
    calls_before: int
    rows: int = 0
    in_features: int = 0
    expert: bool = False
    pairs: int = 0

    def after(self, calls: int) -> Product:
        """The same, behind so many more attention calls."""
        return replace(self, calls_before=self.calls_before + calls) if calls else self


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands FLOPs, tensors and pairs of operators to `seen`, what picks matrices to `picked`."""

    supports_higher_order_operators = True

    def __init__(
        self,
        seen: Callable[[int, Sequence[Tensor], int], None],
        picked: Callable[[Tensor, Tensor], None],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen, self._picked = seen, picked

    def __enter__(self) -> Any:
        """See operators from here on."""
        with beneath(OPERATOR_MODES):
            return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *why: Any) -> None:
        """See no more."""
        with beneath(OPERATOR_MODES):
            super().__exit__(*why)  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: nothing is compiled while a forward is watched, and asking costs every operator."""
        return False

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload | torch._ops.HigherOrderOperator,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        # most of a model multiplies nothing, and must not wait for us to find that out
        if not (types or matters(func) or torch.is_inference_mode_enabled()):
            return func(*args, **kwargs)
        if isinstance(func, torch._ops.HigherOrderOperator):
            return func(*args, **kwargs)  # flex_attention: no product
        if any(kind.__name__ == "DTensor" for kind in types):
            return NotImplemented  # what it does with the part that is here comes by again
        if torch.is_inference_mode_enabled():
            # there, composite operators (linear, matmul) arrive whole
            with self:
                parts: object = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out: object = func(*args, **kwargs)
        if any(kind.__name__ == "FakeTensor" for kind in types) or _is_count(out):
            return out
        if picks(func):
            if isinstance(args[0], Tensor) and isinstance(out, Tensor):
                self._picked(args[0], out)
        elif flops := product_flops(func, args, kwargs, out):
            operands = [a for a in args if isinstance(a, Tensor)]
            self._seen(flops, operands, fused_pairs(func, args))
        return out


class ProductWatch:
    """Collects the products of one forward of a model."""

    def __init__(self, plan: Plan, seen: Callable[[], int]) -> None:
        """Start watching.

        Args:
            plan: How.
            seen: Number of attention calls so far in the running forward.
        """
        self.products: list[Product] = []
        self._plan = plan
        self._seen = seen
        self._owners: list[str] = [""]
        self._ordinals: dict[str, int] = {}
        self._handles: list[RemovableHandle] = []
        self._inside: list[tuple[str, nn.Module]] = []
        self._thread = get_ident()
        self._picks: dict[int, tuple[ReferenceType[Tensor], Owner]] = {}
        self._copies: set[tuple[str, str]] = set()
        self._mode = _Counting(self._operator, self._picked)
        self._enter_absent()
        self._whole = plan.whole
        if plan.whole:
            self._mode.__enter__()
        else:
            self._hook()

    def stop(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        # a module that was interrupted was not left
        if self._whole or len(self._owners) > 1:
            self._whole = False
            del self._owners[1:]
            self._mode.__exit__(None, None, None)

    def _hook(self) -> None:
        for path, module, entering, leaving in self._plan.linears:
            hook = self._linear(path, entering, leaving)
            self._handles.append(module.register_forward_hook(hook))
        for path, module in self._plan.own:
            before, after = self._own(path)
            self._handles.append(module.register_forward_pre_hook(before))
            self._handles.append(module.register_forward_hook(after, always_call=True))

    def _enter_absent(self) -> None:
        """Know which offloaded module runs: only then do its parameters have an address."""

        def enter(path: str, module: nn.Module, args: object) -> None:
            if get_ident() == self._thread:
                self._inside.append((path, module))

        def leave(module: nn.Module, args: object, out: object) -> None:
            if get_ident() == self._thread:
                self._inside.pop()

        for path, module in self._plan.absent:
            self._handles.append(module.register_forward_pre_hook(partial(enter, path)))
            self._handles.append(module.register_forward_hook(leave, always_call=True))

    def _owner(self, operand: Tensor) -> Owner | None:
        """Whose parameter an operand of a product is."""
        at = address(operand)
        found = self._plan.weights.get(at)
        if found is not None or not at:
            return found
        pick = self._picks.get(at)
        if pick is not None and pick[0]() is not None:
            return pick[1]
        for path, module in reversed(self._inside):
            for name, parameter in module._parameters.items():
                if parameter is not None and address(parameter) == at:
                    return path, name, parameter.ndim > 1 and path not in self._plan.plain
        return self._copied(operand)

    def _copied(self, operand: Tensor) -> Owner | None:
        """Whose parameter it is a copy of, as autocast makes them; the next one of several."""
        if operand.ndim != 2 or operand.is_meta:
            return None
        found: Owner | None = None
        with unseen_by_modes():
            for owner, parameter in self._plan.matrices.get(operand.shape, ()):
                if is_copy(operand, parameter):
                    found = found or owner
                    if owner[:2] not in self._copies:
                        self._copies.add(owner[:2])
                        return owner
        return found

    def _linear(
        self, path: str, entering: int, leaving: int
    ) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        key = (path, "weight", 0)

        def after(module: nn.Module, args: tuple[object, ...], out: object) -> None:
            if len(self._owners) == 1 and get_ident() == self._thread:
                with unseen_by_modes():
                    rows = _rows(args, out, entering, leaving)
                flops = 2 * rows * entering * leaving
                before = self._seen()
                self.products.append(Product(key, flops, before, rows, entering))

        return after

    def _own(
        self, path: str
    ) -> tuple[Callable[[nn.Module, object], None], Callable[[nn.Module, object, object], None]]:
        def before(module: nn.Module, args: object) -> None:
            if get_ident() != self._thread:
                return
            if len(self._owners) == 1:
                self._mode.__enter__()
            self._owners.append(path)

        def after(module: nn.Module, args: object, out: object) -> None:
            if get_ident() != self._thread:
                return
            self._owners.pop()
            if len(self._owners) == 1:
                self._mode.__exit__(None, None, None)

        return before, after

    def _picked(self, matrices: Tensor, some: Tensor) -> None:
        """Some of the matrices of a parameter: where each row has those of its own experts."""
        owner = self._owner(matrices) if matrices.ndim == some.ndim > 2 else None
        if owner is not None:
            self._picks[address(some)] = ref(some), owner

    def _operator(self, flops: int, operands: Sequence[Tensor], pairs: int) -> None:
        before = self._seen()
        for operand in () if pairs else operands:
            found = self._owner(operand)
            if found is not None and operand.ndim > 1:
                path, name, matrices = found
                features = int(operand.shape[-2])
                rows = flops // (2 * features * int(operand.shape[-1]))
                key = (path, name, 0)
                product = Product(key, flops, before, rows, features, expert=matrices)
                self.products.append(product)
                return
        owner = self._owners[-1]
        ordinal = self._ordinals.get(owner, 0)
        self._ordinals[owner] = ordinal + 1
        expert = bool(owner) and owner in self._plan.matrix_owners
        product = Product((owner, "", ordinal), flops, before, expert=expert, pairs=pairs)
        self.products.append(product)


def _is_count(out: object) -> bool:
    """Whether a result holds 64-bit integers: those are digests of ours, no numbers of a model."""
    return isinstance(out, Tensor) and out.dtype == torch.int64


def _rows(args: tuple[object, ...], out: object, entering: int, leaving: int) -> int:
    """Rows that a linear layer processed; some hand back more than the product.

    Where several processes share the matrix, the product may have been gathered since.
    """
    given = next((a for a in args if isinstance(a, Tensor)), None)
    if isinstance(out, Tensor) and (given is None or out.shape[-1:] == (leaving,)):
        return out.numel() // leaving
    return 0 if given is None else given.numel() // entering
