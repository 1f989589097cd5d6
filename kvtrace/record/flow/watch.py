"""See attention in any torch code while it runs: `with FlowWatch(model, sink=calls.append):`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kvtrace.record.capture.replaced.compiled import eagerly
from kvtrace.record.capture.tokens.inputs import named, says_length, tokens_of
from kvtrace.record.flow.calls.listen import Listening
from kvtrace.record.flow.calls.outlet import Outlet, Sink
from kvtrace.record.flow.marks.mark import Stage
from kvtrace.record.flow.marks.owned import Owned
from kvtrace.record.flow.modes.fast_paths import FAST_PATHS, FastPaths
from kvtrace.record.flow.modes.heard import Hearing, Late
from kvtrace.record.flow.modes.modules import Forwards, Frame, Only
from kvtrace.record.flow.modes.routed import RoutedMode
from kvtrace.record.flow.modes.wake import Waking
from kvtrace.record.flow.plans.arrange import Sizes

_NAMED_ATTENTION = re.compile(r"^(?!.*(Linear|Layer|Block|Norm|Output)).*(Attention|Attn)")


class FlowWatch:
    """Watches models, and plain functions around them, for attention.

    While active, `forward` of the models' classes is patched and one torch function mode is on;
    both are gone on exit. Results keep their bits. torch.compile'd code runs eagerly.

    Args:
        models: Models whose modules are to be named; more may be adopted later.
        sink: Called with each AttentionCall, in the forward that made it. Keys and values are
            references: copy what must outlive the forward.
        only: Watch only inside of modules for which this is true, (path, module) → bool; the
            rest of the model runs at full speed. None: watch everything, functions too.
        late: Takes the calls of a forward that was only listened to, instead, when it is over.

    Attributes:
        followed: Anything was watched so far.
        of_parts: A step is under way in which parts of the model are called one by one.
        over: Nothing is watched any more; what was seen is known still.
        projections: Modules that call themselves attention, and make its queries or rows only.
    """

    def __init__(
        self, *models: nn.Module, sink: Sink, only: Only | None = None, late: Late | None = None
    ) -> None:
        self._models = list(models)
        self._only = only
        self._forwards = Forwards(self._around)
        self._listening = Listening(Outlet(self._forwards, sink))
        self._owned = Owned()
        self._mode = RoutedMode(self._listening, self._owned.has)
        self._listening.last_parameter = lambda: self._mode.products.last_parameter
        self._fast_paths = FastPaths(self._listening)
        self._hearing = Hearing(self._listening, self._mode, late)
        self._waking = Waking(self._mode, self._missed, self._hearing)
        self._modules: dict[str, None] = {}
        self._chosen: dict[int, bool] = {}
        self._depth = 0
        self.of_parts = False
        self.followed = False
        self.over = False
        self._brief_alone = False
        self.projections = set[str]()
        self._stack = contextlib.ExitStack()
        self._silent: dict[str, str] = {}
        self._halves = set[str]()
        self._brief: dict[str, nn.Module] = {}

    # ------------------------------------------------------------------ on and off

    def __enter__(self) -> FlowWatch:
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            stack.callback(self._forwards.undo)
            stack.enter_context(eagerly())
            for model in self._models:
                self.adopt(model)
            if self._only is None:
                stack.enter_context(self._watching())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with self._listening.harmless():
                self._listening.outlet.flush()
        finally:
            self._waking.stop()
            self._stack.close()
            self._mode.forget()

    def adopt(self, model: nn.Module) -> None:
        """Watch one more model."""
        self._forwards.adopt(model, self._only)
        self._modules |= dict.fromkeys(type(module).__module__ for module in model.modules())
        self._owned.add(model.parameters())
        for path in self._forwards.compiled:
            name = path or type(model).__name__
            self._listening.notes[f"{name}: compiled code was run eagerly"] = None

    def name(self, model: nn.Module) -> None:
        """Call the modules of a model by their paths, without watching them."""
        self._forwards.name(model)

    def briefly(self, modules: Mapping[str, nn.Module], *, alone: bool) -> None:
        """Watch these, by path, only until they are known to ask for their attention.

        Args:
            modules: They.
            alone: Nothing else is watched: then it is over.
        """
        self._brief.update(modules)
        self._brief_alone = alone

    def asked(self, paths: Iterable[str]) -> None:
        """These asked for their attention: what was followed in them is forgotten."""
        for path in self._brief.keys() & set(paths):
            self._chosen[id(self._brief.pop(path))] = False
            self._silent.pop(path, None)
            self._listening.forget(path)
            self.followed = False
        if self._brief_alone and not self._brief and not self.over:
            self.over = True
            self.__exit__(None, None, None)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Modules that run inside, in this thread, are nobody's business."""
        before, self._forwards.paused = self._forwards.paused, True
        try:
            yield
        finally:
            self._forwards.paused = before

    def as_forward(
        self,
        method: Callable[..., Any],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a method of a watched model, watched as its forward is."""
        return self._forwards.call(method, module, args, kwargs)

    def begin_step(self, batch: int | None = None, tokens: int | None = None) -> None:
        """Say that a step begins, where no watched model's own forward does.

        Args:
            batch: Sequences, if known.
            tokens: New tokens per sequence, if known.
        """
        self._listening.begin(Sizes(batch, () if tokens is None else (tokens,)))

    # ------------------------------------------------------------------ what was not seen

    @property
    def unseen(self) -> tuple[str, ...]:
        """Sentences: attention that could not be read, and code that nobody can look into."""
        told = [
            f"{path or 'the model'} ({where}): {reason}"
            for (path, where), reason in self._listening.reasons.items()
        ]
        scripted = [
            f"{path or 'the model'}: scripted, can't be seen" for path in self._forwards.scripted
        ]
        silent = [f"{path}: {why}" for path, why in self._silent.items()]
        return (*told, *scripted, *silent)

    @property
    def relieving(self) -> set[str]:
        """Modules that were seen to attend, at the place of another one."""
        return self._listening.outlet.relief.seen

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences: what was assumed, and what was looked at in another way than it ran."""
        return tuple(self._listening.notes)

    # ------------------------------------------------------------------ around each forward

    def _around(self, frame: Frame, run: Callable[[], Any]) -> Any:
        if self._hearing.follows and isinstance(frame.module, FAST_PATHS):
            self._hearing.leave()
        if self._hearing.follows:
            out = run()
            if not self._hearing.follows:  # woken meanwhile
                with self._listening.harmless():
                    self._after(frame, out)
            return out
        if frame.outermost:
            with self._listening.harmless():
                sizes = _sizes_of(frame, self._forwards.two_sided)
                self._listening.begin(sizes, goes_on=self.of_parts)
        if not self._is_chosen(frame):
            return run()
        fused = isinstance(frame.module, FAST_PATHS)
        if fused:
            self._mode.families.odd = True
            self._waking.wake()
        if not self._depth:
            with self._watching(frame):
                out = self._fast_paths.run(frame, run) if fused else run()
        elif frame.outermost and self._only is None and self._mode.is_on_top:
            with self._resting(frame):
                out = self._fast_paths.run(frame, run) if fused else run()
        else:  # the mode is on already
            out = self._fast_paths.run(frame, run) if fused else run()
        try:  # as `harmless`, without a context manager for every module
            self._after(frame, out)
        except Exception as error:
            self._listening.failed(error)
        return out

    def _after(self, frame: Frame, out: Any) -> None:
        loop = self._listening.loop
        if loop.waiting and isinstance(out, Tensor):
            loop.carry(out)
        self._waking.rest()
        if frame.outermost:
            self._listening.outlet.flush()
            self._listening.sizes = Sizes()
            self._mode.forget()
        if frame.attended:
            self._silent.pop(frame.path, None)
        elif frame.module is not None and _NAMED_ATTENTION.search(type(frame.module).__name__):
            mark = self._mode.marks.get(out)
            if mark is not None and mark.stage is Stage.WEIGHTS:
                self._halves.add(frame.path)  # whoever called it multiplies them with the values
            if frame.path in self._halves:
                return
            if _only_projects(frame, out):
                self.projections.add(frame.path)
                return
            how = self._listening.apart.get(frame.path)
            why = "named attention, but none was seen in it"
            self._silent.setdefault(frame.path, f"{why}: {how}" if how else why)

    def _is_chosen(self, frame: Frame) -> bool:
        if self._only is None or self._depth:
            return True
        assert frame.module is not None
        key = id(frame.module)
        if key not in self._chosen:
            self._chosen[key] = bool(self._only(frame.path, frame.module))
        return self._chosen[key]

    @contextlib.contextmanager
    def _watching(self, frame: Frame | None = None) -> Iterator[None]:
        """The mode, switched on once; in a forward, only where it is needed."""
        self._depth += 1
        self.followed = True
        try:
            if self._depth > 1:
                yield
            elif frame is None:
                with self._mode:
                    yield
            else:
                with self._waking.around(frame, self._modules):
                    yield
        finally:
            self._depth -= 1

    @contextlib.contextmanager
    def _resting(self, frame: Frame) -> Iterator[None]:
        """The mode that is on around everything, in a forward only where it is needed."""
        torch._C._pop_torch_function_stack()
        try:
            with self._waking.around(frame, self._modules):
                yield
        finally:
            torch._C._push_on_torch_function_stack(self._mode)

    def _missed(self, path: str, why: str) -> None:
        self._listening.reasons.setdefault((path, "in a step"), why)


def _sizes_of(frame: Frame, two_sided: bool) -> Sizes:
    """Sequences and tokens: token ids [sequences, tokens] or [tokens], else embeddings."""
    if two_sided and frame.module is not None:
        ids = tokens_of(named(frame.module, *frame.arguments))  # the decoder's, of two texts
        if ids is not None and ids.dim() == 2:
            return Sizes(ids.shape[0], (ids.shape[1],))
    tensors = list(frame.tensors())
    rows = next((x for x in tensors if x.dtype.is_floating_point and x.dim() == 3), None)
    whole = (x for x in tensors if x.dtype in (torch.int32, torch.int64))
    for x in whole:
        if x.numel() and x.dim() in (1, 2) and not (rows is not None and _counts(frame, x)):
            return Sizes(x.shape[0] if x.dim() == 2 else 1, (x.shape[-1],))
    return Sizes() if rows is None else Sizes(rows.shape[0], (rows.shape[1],))


def _only_projects(frame: Frame, out: object) -> bool:
    """Whether all that a module does is one projection, for whoever calls it to attend with."""
    assert frame.module is not None
    matrices = [one for one in frame.module.parameters() if one.dim() == 2]
    given = next(iter(frame.tensors()), None)
    if len(matrices) != 1 or given is None or not isinstance(out, Tensor):
        return False
    made, taken = matrices[0].shape
    return given.shape[-1] == taken and out.numel() * taken == given.numel() * made


def _counts(frame: Frame, given: Tensor) -> bool:
    """Whether an argument says how long texts are, by its name."""
    by_name = {} if frame.module is None else named(frame.module, *frame.arguments)
    return any(one is given and says_length(name) for name, one in by_name.items())
