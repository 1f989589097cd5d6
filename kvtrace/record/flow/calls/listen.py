"""From what the mode sees to attention calls that have proved themselves.

Knows which module runs and how many sequences and tokens went in. Tells of every attention either
a call, or why it could not be read; never both, never neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace
from torch import Tensor

from kvtrace.record.flow.calls.call import along, aside, read, unrepeated
from kvtrace.record.flow.calls.difference import factors, mixes, said
from kvtrace.record.flow.calls.explain import UnexplainedError
from kvtrace.record.flow.calls.fused import of_flex, of_sdpa
from kvtrace.record.flow.calls.loops import COLLECTS, Loop
from kvtrace.record.flow.calls.outlet import Outlet
from kvtrace.record.flow.calls.placeholders import computed
from kvtrace.record.flow.calls.prove import FlowCall, refusal
from kvtrace.record.flow.marks.follow import Args, Kwargs
from kvtrace.record.flow.marks.weights import SCRIPTED, SIGMOIDAL, is_batched
from kvtrace.record.flow.modes.methods import method_path
from kvtrace.record.flow.modes.modules import Forwards, Frame
from kvtrace.record.flow.modes.places import place
from kvtrace.record.flow.modes.route import Walk
from kvtrace.record.flow.plans.arrange import AmbiguousError, NotOverTokensError, Sizes
from kvtrace.record.flow.plans.mix import Mix
from kvtrace.record.flow.plans.plan import Plan
from kvtrace.record.flow.plans.plans import Plans
from kvtrace.record.modes import unseen_by_modes
from kvtrace.trace import OTHER_AXIS


@dataclass(slots=True)
class Listening:
    """What has been seen so far.

    Attributes:
        outlet: Takes the calls that were read.
        forwards: Gives the module that runs.
        loop: Calls with one head that wait for the next one.
        sizes: Of the step that runs, as far as known.
        reasons: Module and place of attention that was not read, and why.
        notes: Sentences about what was assumed or looked at in another way.
        refused: A fused kernel that hides its rows; set for the frame that called it.
        plan_of_last: How the tensors of the call that was read last lie.
        apart: Modules that attended to something else than tokens, and how that showed.
        heads: How many a fused call has, by module and place, where tokens were more or fewer.
    """

    outlet: Outlet
    forwards: Forwards = field(init=False)
    loop: Loop = field(init=False)
    sizes: Sizes = field(default_factory=Sizes)
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    last_parameter: Callable[[], Tensor | None] = lambda: None
    refused: Frame | None = None
    plan_of_last: Plan | None = None
    apart: dict[str, str] = field(default_factory=dict)
    heads: dict[tuple[str, str], int] = field(default_factory=dict)
    _other: dict[str, int] = field(default_factory=dict)
    _plans: Plans = field(default_factory=Plans)
    _sigmoids: set[str] = field(default_factory=set)
    _last: Mix | None = None

    def __post_init__(self) -> None:
        self.forwards, self.loop = self.outlet.forwards, self.outlet.loop

    def begin(self, sizes: Sizes, *, goes_on: bool = False) -> None:
        """A new step, in which calls of a module are counted from 0 again, or a part of one."""
        self.outlet.flush()
        self._last = None
        if not goes_on:
            self.outlet.counts.clear()
        self.sizes = sizes

    def forget(self, path: str) -> None:
        """Whatever was said of a module."""
        self.reasons = {one: why for one, why in self.reasons.items() if one[0] != path}
        self.notes = {one: None for one in self.notes if not one.startswith(f"{path}: ")}

    # ------------------------------------------------------------------ what the mode tells

    def consumed(self, name: str, args: Args) -> bool:
        """Outputs of single heads are used: the loop over heads is over, unless it collects."""
        if not self.loop.uses(args):
            return False
        if name in COLLECTS:
            return True
        self.outlet.flush()
        return False

    def mixed(self, mix: Mix) -> bool:
        """Weights met values: read the call."""
        if not mix.contracts_keys:
            if self._path() in self._plans.proven:
                self.notes[f"{self._path()}: {OTHER_AXIS}"] = None
            return False
        if self._is_other(mix.place, mix.weights[0].shape[:-1]) or self._is_beside(mix):
            return True
        if mix.mark.normaliser == SIGMOIDAL:
            return self._gated(mix)
        if mix.mark.terms:
            return self._differs(mix)
        # weights that only look like those of an earlier product: nothing but a proof makes them so
        scripted = mix.mark.normaliser == SCRIPTED
        call = None
        telling = suppress(Exception) if scripted else self._telling(mix.place)
        with aside(mix.product.out, *mix.tensors), telling:
            if is_batched(mix.product.out):
                raise UnexplainedError("it runs inside of torch.vmap, where no row can be read")
            call = self._read(mix)
        if call is not None:
            self._take(call, mix.product.out)
            self._last = mix
        return call is not None or not scripted

    def _is_beside(self, mix: Mix) -> bool:
        """Whether weights that met their values meet other rows, to add to what came of those.

        Rows of a table of distances, say: one for each pair of a query and a key, or the same for
        all heads. The attention was read.
        """
        last = self._last
        if last is None or mix.mark.logits is None or mix.mark.logits is not last.mark.logits:
            return False
        alike = mix.product.out.numel() == last.product.out.numel()
        return alike and mix.values[0].numel() != last.values[0].numel()

    def _gated(self, mix: Mix) -> bool:
        """Sigmoids of scores met values: attention once a prompt hid later rows, else gates.

        A layer of features does the same, over weights made on the way, and hides nothing.
        """
        known, call = mix.place in self._sigmoids, None
        telling = self._telling(mix.place) if known else suppress(Exception)
        with aside(mix.product.out, *mix.tensors), telling:
            found = read(mix, self._plans.of(mix, self._path(), self.sizes_now))
            if known or found.hides_later:
                call = found
        if call is None:
            return known
        self._sigmoids.add(mix.place)
        self._plans.proven.add(self._path())
        self._take(call, mix.product.out)
        return True

    def _differs(self, mix: Mix) -> bool:
        """Several softmaxes added up met values: a call for each of them, and none of the whole."""
        with aside(mix.product.out), self._telling(mix.place):
            alone = mixes(mix)
            path, sizes = self._path(), self.sizes_now
            plans = [self._plans.of(one, path, sizes) for one in alone]
            calls = [read(one, plan) for one, plan in zip(alone, plans, strict=True)]
            parts = [plan.weights.apply(o.weights[0]) for o, plan in zip(alone, plans, strict=True)]
            found = factors(plans[0].weights.apply(mix.weights[0]), parts)
            if path not in self._plans.proven:
                self.notes[f"{path}: {said(found)}"] = None
                self._plans.proven.add(path)
            for number, (one, call) in enumerate(zip(alone, calls, strict=True)):
                self._take(replace(call, mixes=not number), one.product.out)
                self.outlet.flush()
        return True

    def _read(self, mix: Mix) -> FlowCall:
        """The call; unproved only where the same module has proved itself before.

        Attention that was attention and now makes something else of its scores is what a check
        wants to see.
        """
        path = self._path()
        plan = self.plan_of_last = self._plans.of(mix, path, self.sizes_now)
        try:
            call = read(mix, plan)
        except UnexplainedError as reason:
            if reason.call is None or path not in self._plans.proven:
                raise
            return reason.call
        self._plans.proven.add(path)
        return call

    def walked(self, walk: Walk) -> None:
        """A call has gone a known route: read it as the one before."""
        call, output = None, walk.done[-1].out
        with aside(output), self._telling(walk.route.place):
            call = along(walk)
        if call is not None:
            self._take(call, output)

    @property
    def site(self) -> tuple[str, int] | None:
        """The module that runs, and its next call; None where heads are still put together."""
        frame = self.frame
        if frame is None or self.loop.waiting:
            return None
        return frame.path, self.outlet.counts[frame.path]

    def _is_other(self, where: str, shape: Sequence[int]) -> bool:
        """Whether code is known to attend to something else than tokens.

        It was taken for that because one of its axes was as long as the prompt. If that axis keeps
        its length when there are fewer tokens, it holds heads, and the code is given back its name.
        """
        if (size := self._other.get(where)) is None:
            return False
        tokens = self.sizes_now.tokens
        if size == 1 or (tokens and tokens[-1] == size) or size not in shape:
            return True
        del self._other[where]
        self._tell(where, f"a prompt of {size} tokens is as long as another axis; take another one")
        return False

    def fused(self, kind: str, args: Args, kwargs: Kwargs, out: Any) -> None:
        """A fused call: its arguments say everything, or its module must be run again."""
        if kind == "unfusable":
            self.refused = self._refusing
            return
        where = place()[0]
        first = out[0] if isinstance(out, tuple) else out
        if self._is_other(where, first.shape[:-1]):
            return
        call = None
        given = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
        with aside(first, *given), self._telling(where):
            if kind == "sdpa":
                whole = self._sdpa(args, kwargs, out, where)
            else:
                whole = of_flex(args, kwargs, out, where)
            whole = unrepeated(whole.detached)
            why = refusal(whole)
            if why:
                raise UnexplainedError(why)
            call = whole
        if call is not None:
            self._take(call, first)

    def _sdpa(self, args: Args, kwargs: Kwargs, out: Tensor, where: str) -> FlowCall:
        """The call; a step may have as many tokens as its code has heads, which others tell."""
        sizes, site = self.sizes_now, (self._path(), where)
        call = of_sdpa(args, kwargs, out, sizes, where, self.heads.get(site))
        heads = call.queries.shape[1]
        if heads not in sizes.tokens:
            self.heads[site] = heads
        # without an axis of sequences, all of them were merged with the heads, or this is one
        return replace(call, texts=sizes.batch or 0) if out.dim() == 3 else call

    def _take(self, call: FlowCall, output: Tensor) -> None:
        path = self._path()
        if call.assumed and not any(one.endswith(call.assumed) for one in self.notes):
            self.notes[f"{path or 'the model'}: {call.assumed}"] = None
        if call.queries.shape[0] == 1 and (self.sizes.batch or 1) > 1:
            call = replace(call, texts=self.sizes.batch)
        self.outlet.take(computed(call, path, self.notes), path, output)

    # ------------------------------------------------------------------ what went wrong

    @contextmanager
    def _telling(self, where: str) -> Iterator[None]:
        """Turn what goes wrong while reading into a reason; the model never notices."""
        try:
            yield
        except NotOverTokensError as reason:
            self._other[where], self.apart[self._path()] = self.sizes_now.tokens[-1], str(reason)
        except (AmbiguousError, UnexplainedError) as reason:
            self._tell(where, str(reason))
        except Exception as error:  # a tensor of a kind nobody foresaw must not stop the model
            self._tell(where, _line(error))

    def failed(self, error: Exception) -> None:
        """A fault of ours: say where, and go on without what was being followed."""
        self.loop.take()
        self._tell(place()[0], f"following it failed: {_line(error)}")

    @contextmanager
    def harmless(self) -> Iterator[None]:
        """Whatever goes wrong inside becomes a sentence; no mode of the program is shown it."""
        try:
            with unseen_by_modes():
                yield
        except Exception as error:
            self.failed(error)

    def _tell(self, where: str, reason: str) -> None:
        self.reasons.setdefault((self._path(), where), reason)

    # ------------------------------------------------------------------ where and how many

    @property
    def frame(self) -> Frame | None:
        """The innermost forward that runs."""
        return self.forwards.stack[-1] if self.forwards.stack else None

    @property
    def _refusing(self) -> Frame | None:
        """The forward to run again without its fused kernels: nothing else takes ragged rows."""
        running = reversed(self.forwards.stack)
        return next((one for one in running if not any(x.is_nested for x in one.tensors())), None)

    def _path(self) -> str:
        frame = self.frame
        if frame is not None:
            return frame.path
        owner = self.forwards.owner_of(self.last_parameter())
        return owner if owner is not None else method_path(self.forwards.paths) or place()[1]

    @property
    def sizes_now(self) -> Sizes:
        """Sequences and tokens of the step, and of the module's own input."""
        frame, stack = self.frame, self.forwards.stack
        inner = () if frame is None else _rows_given(frame)
        # of two texts, rows of both may be given
        inner = tuple(dict.fromkeys(inner)) if self.forwards.two_sided else inner[:1]
        tokens = (*inner, *self.sizes.tokens)
        between = () if 1 in tokens else stack[-2::-1]
        around = tuple(rows for one in between for rows in _rows_given(one)[:1])
        return Sizes(self.sizes.batch, tokens, around)


def _rows_given(frame: Frame) -> tuple[int, ...]:
    """Rows of each tensor [sequences, rows, width] that a module was given."""
    given = (x for x in frame.tensors() if x.dim() == 3 and x.dtype.is_floating_point)
    return tuple(x.shape[1] for x in given)


def _line(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
