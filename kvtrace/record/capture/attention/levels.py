"""Which modules level 1 will see, which need the data flow, and which nobody saw.

A module that asks transformers' attention interface is seen for nothing; the data flow costs time,
so it is followed only in modules that look like attention and do not ask, or not for all of their
settings, or everywhere in a model where nothing asks.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from functools import lru_cache
from time import perf_counter_ns
from types import CodeType, FunctionType

from torch import nn

from kvtrace.record.capture.attention.ahead import Ran
from kvtrace.record.capture.attention.calls import AttentionCall
from kvtrace.record.capture.running import Followed, Pass, passes
from kvtrace.record.flow import FlowWatch, Late
from kvtrace.record.flow.calls.call import uncounted
from kvtrace.record.whose import of_transformers

_ASKS = {"ALL_ATTENTION_FUNCTIONS", "get_interface"}
_WRITES = {"softmax", "scaled_dot_product_attention"}
_CALLS_ON = {"super", "__class__"}
_LOOKS = re.compile(r"^(?!.*(Linear|Layer|Block|Norm|Output)).*(Attention|Attn)")


_classes: dict[tuple[type[nn.Module], object], bool] = {}


def asks(module: nn.Module) -> bool:
    """Whether the code that runs in a module mentions the attention interface."""
    own = vars(module)
    if "forward" in own:
        # put there by somebody, in place of what the class has; it may call that one
        return any(_mentions(code, _ASKS) for one in own.values() for code in _reached(one))
    key = type(module), type(module).forward
    found = _classes.get(key)
    if found is None:
        found = _classes[key] = any(_mentions(code, _ASKS) for code in _methods(key[0]))
    return found


def _reached(called: object, depth: int = 2) -> Iterator[CodeType]:
    """The code of a function, and of those that it was made with."""
    function = inspect.unwrap(called) if callable(called) else None
    function = getattr(function, "__func__", function)
    if not isinstance(function, FunctionType):
        return
    yield function.__code__
    if depth:
        for kept in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            yield from _reached(kept, depth - 1)
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # an empty one
                yield from _reached(cell.cell_contents, depth - 1)


def may_bypass(kind: type) -> bool:
    """Whether a class that asks also has attention written out, for some of its settings."""
    return any(_mentions(code, _WRITES) for code in _methods(kind))


def _goes_around(module: nn.Module) -> bool:
    """Whether somebody's module holds one that asks, and may calculate attention in its place."""
    kind = type(module)
    if of_transformers(kind) or asks(module) or not any(map(asks, module.children())):
        return False
    return may_bypass(kind)


def _methods(kind: type) -> Iterator[CodeType]:
    """What runs when methods of a class are called: not what a subclass has replaced."""
    replaced: set[str] = set()
    for owner in kind.__mro__:
        if owner is nn.Module or owner.__module__ == "transformers.modeling_utils":
            return
        for name, method in vars(owner).items():
            function = inspect.unwrap(method) if callable(method) else None
            if not isinstance(function, FunctionType) or name in replaced:
                continue
            yield function.__code__
            if not _mentions(function.__code__, _CALLS_ON):
                replaced.add(name)


def _mentions(code: CodeType, names: Set[str]) -> bool:
    inner = (one for one in code.co_consts if isinstance(one, CodeType))
    own = (*code.co_names, *code.co_freevars)
    return not names.isdisjoint(own) or any(_mentions(one, names) for one in inner)


def looks_like_attention(kind: type[nn.Module]) -> bool:
    """Whether a class calls itself attention."""
    return _is_attention(kind.__name__)


@lru_cache(maxsize=1 << 12)
def _is_attention(name: str) -> bool:
    return _LOOKS.search(name) is not None


def lower_levels(model: nn.Module, modules: Mapping[str, nn.Module]) -> FlowWatch | None:
    """What watches the data flow where it must be; None: level 1 will see everything.

    Args:
        model: The watched model.
        modules: All of its modules, by path.
    """
    asking = {path for path, module in modules.items() if asks(module)}
    kinds = {type(modules[path]) for path in asking}
    kinds = {kind for kind in kinds if looks_like_attention(kind) and may_bypass(kind)}
    doubted = {
        path: of_transformers(type(module))
        for path, module in modules.items()
        if type(module) in kinds
    }
    if getattr(getattr(model, "config", None), "_attn_implementation", "eager") != "eager":
        doubted = {path: theirs for path, theirs in doubted.items() if not theirs}
    doubted |= {path: False for path, one in modules.items() if _goes_around(one)}

    def deliver(call: AttentionCall) -> None:
        for one in passes():
            if one.flow is flow:
                one.calls.append(Followed(_kept(one, call), len(one.updates)))

    if not asking:
        # outside of its forward nothing of the model attends, and sampling stays as fast as it is
        flow = FlowWatch(model, sink=deliver, only=lambda *_: True, late=_late(lambda: flow))
        return flow
    silent = {
        path
        for path, module in modules.items()
        if looks_like_attention(type(module)) and not _related(path, asking)
    } | doubted.keys()
    if not silent:
        return None
    flow = FlowWatch(model, sink=deliver, only=lambda path, _: path in silent)
    brief = {path: modules[path] for path, theirs in doubted.items() if theirs}
    flow.briefly(brief, alone=silent == brief.keys())
    return flow


def _late(watch: Callable[[], FlowWatch]) -> Late:
    """Calls of a forward that are told of when it is over."""

    def mine() -> Pass | None:
        return next((one for one in passes() if one.flow is watch()), None)

    def alone() -> bool:
        one = mine()
        return one is not None and not one.updates

    def ready() -> bool:
        one = mine()
        return one is not None and one.keep_late is not None and not one.updates

    def take(calls: Sequence[AttentionCall]) -> None:
        one = mine()
        if one is not None and one.keep_late is not None:
            start = perf_counter_ns()
            one.calls += [Followed(call, len(one.updates)) for call in one.keep_late(calls)]
            one.own_ns += perf_counter_ns() - start

    return Late(ready, take, alone)


def _kept(one: Pass, call: AttentionCall) -> AttentionCall:
    """The call, as it stays when the model writes over what it has just read."""
    if one.keep is None or one.updates:
        return call
    start = perf_counter_ns()
    with uncounted(call.queries, call.keys, call.values, call.output):
        call = one.keep(call)
    one.own_ns += perf_counter_ns() - start
    return call


def _related(path: str, others: Set[str]) -> bool:
    """Whether a module is one of the others, inside of one, or around one."""
    # the model itself, without a path, is around all of them
    return any(
        path == other or path.startswith(f"{other}.") or other.startswith(f"{path}.")
        for other in others
    ) or (not path and bool(others))


def attentions(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Those that call themselves attention."""
    return {path: one for path, one in modules.items() if looks_like_attention(type(one))}


def unseen(model: nn.Module, seen: Set[str], ran: Ran, flow: FlowWatch | None) -> Iterator[str]:
    """Sentences: modules that call themselves attention, ran, and were not seen to attend.

    Args:
        model: The watched model.
        seen: Paths of the modules that were.
        ran: Those that ran.
        flow: What watched the data flow, if anything did; it knows its own reasons.
    """
    told = [(one.split(" ")[0].rstrip(":"), one) for one in (() if flow is None else flow.unseen)]
    yield from (one for path, one in told if path not in ran.only_ahead)
    named = {path for path, _ in told} | (set() if flow is None else flow.projections)
    parts = dict(model.named_modules())
    # what several layers share has one path, and is within each of them
    attended = {id(parts[path]) for path in seen if path in parts}
    for path, module in parts.items():
        if path not in ran.within or path in named or _related(path, seen):
            continue
        if not any(id(one) in attended for one in module.modules()):
            yield f"{path} ({type(module).__name__}): looks like attention, and none was seen in it"
