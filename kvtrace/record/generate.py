"""What `generate` knows and forwards do not say: the prompt's length, the last token, the end.

Its method is replaced class-wide while somebody follows; results pass through untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers.generation.utils import GenerationMixin

from kvtrace.record.patch import Method, Patches
from kvtrace.trace import Ending, Step


@dataclass(slots=True)
class Generation:
    """One call of `generate`.

    Attributes:
        prompt_rows: Tokens of the prompt, padding included; for an encoder-decoder model those
            the decoder starts from.
        over: It returned, or raised.
        sequences: Token ids that came back, prompt included; None while it runs, or on errors.
    """

    prompt_rows: int
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
        new = self.sequences.shape[1] - self.prompt_rows
        last = self.sequences[:, -1].tolist()
        if self.eos and any(token in self.eos for token in last):
            return Ending("eos", f"generate ended the text after {new} new tokens")
        return Ending("length", f"generate made {new} new tokens")


_arrivals: list[Callable[[nn.Module], None]] = []

_followers: list[tuple[nn.Module, Callable[[Generation], None]]] = []


def _install(patches: Patches) -> None:
    def make(original: Method) -> Method:
        def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
            for arrive in list(_arrivals):
                arrive(self)
            mine = [tell for model, tell in _followers if model is self]
            if not mine:
                return original(self, *args, **kwargs)
            run = Generation(_prompt_rows(self, args, kwargs), eos=_eos(self, kwargs))
            for tell in mine:
                tell(run)
            try:
                result = original(self, *args, **kwargs)
                run.sequences = _sequences(result)
            finally:
                run.over = True
                for tell in mine:
                    tell(run)
            return result

        return generate

    patches.replace(GenerationMixin, "generate", make)


GENERATE = Patches(_install)
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


def _prompt_rows(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        given = kwargs.get("decoder_input_ids")
        return int(given.shape[1]) if isinstance(given, Tensor) else 1
    given = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
    if not isinstance(given, Tensor):
        given = kwargs.get("inputs_embeds")
    return int(given.shape[1]) if isinstance(given, Tensor) and given.dim() > 1 else 1


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
