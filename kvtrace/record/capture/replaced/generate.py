"""What `generate` knows and forwards do not say: the prompt's length, the last token, the end.

Its method is replaced class-wide while somebody follows; results pass through untouched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from kvtrace.record.capture.replaced.patch import Method, Patches
from kvtrace.record.modes import unseen_by_modes
from kvtrace.trace import Ending, Step
from kvtrace.units import counted


@dataclass(slots=True)
class Generation:
    """One call of `generate`.

    Attributes:
        prompt_rows: Tokens of the prompt, padding included; for an encoder-decoder model those
            the decoder starts from.
        returned_rows: Of them, those that come back before the new tokens: none of embeddings.
        says: Sentences: who else has a say in the tokens.
        over: It returned, or raised.
        sequences: Token ids that came back, prompt included; None while it runs, or on errors.
    """

    prompt_rows: int
    returned_rows: int
    says: tuple[str, ...] = ()
    over: bool = False
    sequences: Tensor | None = None
    eos: frozenset[int] = field(default_factory=frozenset)

    def last_tokens(self, step: Step | None) -> tuple[int | None, ...] | None:
        """Tokens that were chosen after its last step and fed nowhere."""
        if step is None or self.sequences is None or self.sequences.dim() != 2:
            return None
        if self.sequences.shape[0] != step.num_sequences:
            return None
        fed: tuple[int, ...] = tuple(row[-1] for row in step.tokens if row)
        if len(fed) != step.num_sequences or self.sequences.shape[1] < 2:
            return None
        last: list[list[int]] = self.sequences[:, -2:].tolist()
        if any(pair[0] != token for pair, token in zip(last, fed, strict=True)):
            return None
        return tuple(pair[1] for pair in last)

    @property
    def ending(self) -> Ending | None:
        """Why it ended, as far as its result tells."""
        if self.sequences is None or self.sequences.dim() != 2:
            return None
        new = self.sequences.shape[1] - self.returned_rows
        last = self.sequences[:, -1].tolist()
        if self.eos and any(token in self.eos for token in last):
            return Ending("eos", f"generate ended the text after {new} new tokens")
        return Ending("length", f"generate made {counted(new, 'new token')}")


_arrivals: list[Callable[[nn.Module], None]] = []

_followers: list[tuple[nn.Module, Callable[[Generation], None]]] = []


class _Running(threading.local):
    def __init__(self) -> None:
        self.models: set[int] = set()


_running = _Running()


def _install(patches: Patches) -> None:
    from transformers.generation.utils import GenerationMixin

    def make(original: Method) -> Method:
        def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
            for arrive in list(_arrivals):
                arrive(self)
            mine = [tell for model, tell in _followers if model is self]
            # a model that drafts for itself generates within its own generation
            if not mine or id(self) in _running.models:
                return original(self, *args, **kwargs)
            with unseen_by_modes():
                run = _begun(self, args, kwargs)
                for tell in mine:
                    tell(run)
            _running.models.add(id(self))
            try:
                result = original(self, *args, **kwargs)
                run.sequences = _sequences(result)
            finally:
                _running.models.discard(id(self))
                run.over = True
                with unseen_by_modes():
                    for tell in mine:
                        tell(run)
            return result

        return generate

    patches.replace(GenerationMixin, "generate", make)


GENERATE = Patches(_install, needs="transformers.generation.utils")
"""The patch of `generate`."""


def follow_generate(model: nn.Module, tell: Callable[[Generation], None]) -> Callable[[], None]:
    """Be told when `generate` of a model begins and has ended; returns how to stop."""
    GENERATE.hold()
    entry = (model, tell)
    _followers.append(entry)

    def stop() -> None:
        _followers.remove(entry)
        GENERATE.release()

    return stop


def meet_generate(arrive: Callable[[nn.Module], None]) -> Callable[[], None]:
    """Be told of any model whose `generate` begins, before; returns how to stop."""
    GENERATE.hold()
    _arrivals.append(arrive)

    def stop() -> None:
        _arrivals.remove(arrive)
        GENERATE.release()

    return stop


def generates(model: nn.Module) -> bool:
    """Whether a model that is followed generates in this thread."""
    return id(model) in _running.models


def _begun(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Generation:
    """What its arguments tell of a call of `generate`."""
    eos, says = _eos(model, kwargs), tuple(_companions(kwargs))
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        given = kwargs.get("decoder_input_ids")
        rows = int(given.shape[1]) if isinstance(given, Tensor) else 1
        return Generation(rows, rows, says, eos=eos)
    rows = _rows(args[0] if args else kwargs.get("inputs", kwargs.get("input_ids")))
    embedded = _rows(kwargs.get("inputs_embeds"))
    return Generation(max(rows, embedded) or 1, rows if embedded else rows or 1, says, eos=eos)


def _rows(given: object) -> int:
    return int(given.shape[1]) if isinstance(given, Tensor) and given.dim() > 1 else 0


def _companions(kwargs: Mapping[str, Any]) -> Iterator[str]:
    """Sentences: who drafts tokens that this model checks."""
    config = kwargs.get("generation_config")
    assistant = kwargs.get("assistant_model")
    if assistant is not None:
        name = type(assistant).__name__
        yield f"an assistant, {name}, drafts tokens: it was not recorded, only what checks them"
    if kwargs.get("assistant_early_exit") or getattr(config, "assistant_early_exit", None):
        yield "steps with few sites are drafts of the first layers alone; all layers check them"


def _eos(model: Any, kwargs: Mapping[str, Any]) -> frozenset[int]:
    config = kwargs.get("generation_config") or getattr(model, "generation_config", None)
    found = kwargs.get("eos_token_id", getattr(config, "eos_token_id", None))
    if isinstance(found, Tensor):
        found = found.flatten().tolist()
    if isinstance(found, int):
        return frozenset([found])
    return frozenset(found or ())


def _sequences(result: Any) -> Tensor | None:
    found = result if isinstance(result, Tensor) else getattr(result, "sequences", None)
    return found if isinstance(found, Tensor) else None
