"""What the recording process does once it knows what is wanted: load, record, tell.

Joins models and recorder. The only module here that meets torch.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from kvtrace.configs import NO_ADDRESS, address
from kvtrace.errors import HubError, KvtraceError
from kvtrace.files.notes import append_note
from kvtrace.live.messages import Ended, Progress, Request, Said, Stepped
from kvtrace.live.orders import Orders
from kvtrace.live.other_ways import try_other_ways
from kvtrace.live.turn import Turn
from kvtrace.live.voice import Voice
from kvtrace.trace import Ending, Meta, Note, Sampling

if TYPE_CHECKING:
    from kvtrace.models import Loaded, Tokenizer
    from kvtrace.record import Recording as Recorded
    from kvtrace.record.driving import Driven, Wish

PATIENCE = 300.0
"""Seconds without CPU time while loading; network waits have shorter limits of their own."""

_PROGRESS_EVERY = 0.1


class Recording:
    """One request, from the name of a model to the end of its trace."""

    def __init__(self, request: Request, voice: Voice, orders: Orders) -> None:
        self._request = request
        self._path = Path(request.output).absolute()  # the user's code may go to another folder
        self._voice = voice
        self._orders = orders
        self._pid = os.getpid()
        self._said = ("", 0.0)
        self.script: ModuleType | None = None

    def run(self) -> None:
        """Load and record.

        Raises:
            KvtraceError: It can't be loaded, recorded or written.
            Stopped: A stop came before there was anything to record.
        """
        loaded = self._load()
        self._orders.begin()
        self._progress("reading the prompt", None)
        driven, ending = self._decode(loaded)
        if ending.reason != "stopped":
            asked = self._request
            try_other_ways(loaded, driven, asked, self._path, self._voice, self._orders)
        self._voice.say(Ended(ending.reason, ending.text, self._request.output))

    def as_asked(self, text: str) -> str:
        """What is said of the trace, with the name that the user gave it."""
        return text.replace(str(self._path), self._request.output)

    def _decode(self, loaded: Loaded) -> tuple[Driven, Ending]:
        with loaded.around():
            driven = self._drive(loaded)
            return driven, self._driven(loaded, driven)

    def _drive(self, loaded: Loaded) -> Driven:
        """How the model is called."""
        from kvtrace.record.driving import as_transformers, called_as_transformers, choose_drive

        # the code of a repository may call its models otherwise
        if loaded.script is None and called_as_transformers(loaded.model):
            return as_transformers(loaded.model, loaded.prompt.ids)
        self._progress("finding out how the model is called", None)
        return choose_drive(loaded.model, wish_of(loaded))

    def _driven(self, loaded: Loaded, driven: Driven) -> Ending:
        """Record the decode, and say what there is to say of it."""
        path, known = self._path, _goes_without_saying(driven)
        for text in driven.said[known:]:
            self._voice.say(Said(text))
        recording = self._recording(loaded, driven)
        turn = Turn(recording, self._orders, self._voice, loaded.card.vocab_size)
        with recording:
            ending = self._decoded(loaded, driven, turn)
            recording.end_with(ending)
        if recording.failure is not None:
            raise recording.failure
        if recording.recorder is not None:
            self._say_what_was_not_seen(recording.recorder.meta)
        if ending.reason != "stopped":
            turn.note_last_token(path)
        for text in driven.said[1:]:  # the first is the driver's text
            append_note(path, Note("note", text))
        return ending

    def _recording(self, loaded: Loaded, driven: Driven) -> Recorded:
        """What records the model, as it was asked for."""
        from kvtrace.record import record

        asked = self._request
        driver = "kvtrace" if _goes_without_saying(driven) else f"kvtrace, by {driven.call}"
        sampling = Sampling(driver, loaded.new_tokens, asked.seed, asked.temperature, asked.top_k)
        return record(
            driven.model,
            self._path,
            recompute=asked.recompute,
            referee=asked.referee,
            keep_rows=asked.keep_rows,
            tokenizer=loaded.tokenizer,
            prompt=loaded.prompt.text,
            force=asked.force,
            model_card=loaded.card,
            sampling=sampling,
            on_step=lambda step: self._voice.say(Stepped(step.number, asked.output)),
        )

    def _decoded(self, loaded: Loaded, driven: Driven, turn: Turn) -> Ending:
        """Decode until a limit, or a stop."""
        from kvtrace.record.decode import Choice, Limits, decode

        asked = self._request
        # what is to be checked goes on: a text of one token would show nothing
        ends: frozenset[int] = frozenset() if asked.ways else loaded.tokenizer.eos
        ending = decode(
            driven.model,
            driven.prompt,
            drive=driven.drive,
            choice=Choice(asked.temperature, asked.top_k, asked.seed),
            limits=Limits(
                loaded.new_tokens,
                ends,
                loaded.context_length,
                lambda token: _named(loaded.tokenizer, token),
            ),
            control=turn,
            on_token=turn.chosen,
        )
        stopped = ending.reason == "stopped"
        return Ending("stopped", self._orders.stop_reason) if stopped else ending

    def _say_what_was_not_seen(self, meta: Meta) -> None:
        """A sentence where attention was missed, or there was none."""
        whole = "not all attention was seen" if meta.sites else "no attention was seen"
        more = f", and {len(meta.unseen) - 1} more" if len(meta.unseen) > 1 else ""
        if meta.unseen:
            self._voice.say(Said(f"{whole}: {meta.unseen[0]}{more}"))
        elif not meta.sites:
            why = "the model is recurrent, or attends in a form that kvtrace can't follow"
            self._voice.say(Said(f"{whole}: {why}"))

    def _load(self) -> Loaded:
        self._progress("starting torch", None)
        try:
            from kvtrace.models import LoadRequest, load
        except ValueError as error:
            # what its libraries raise on their own import, without a name
            if address(os.environ.get("HF_ENDPOINT", "https://huggingface.co")) is None:
                raise HubError(f"HF_ENDPOINT {NO_ADDRESS}") from error
            raise

        same = set(LoadRequest.__struct_fields__) - {"spec"}
        known = {name: getattr(self._request, name) for name in same}
        loaded = load(LoadRequest(self._request.model, **known), self._progress)
        if os.getpid() != self._pid:
            os._exit(0)  # a fork that the model's code made: one process records
        self.script = loaded.script
        for text in (loaded.chosen, loaded.prompt.note, loaded.card.banner):
            if text:
                self._voice.say(Said(text))
        return loaded

    def _progress(self, text: str, share: float | None) -> None:
        """Tell what is being done, not more often than anybody can read."""
        before, told = self._said
        now = time.monotonic()
        if text != before or now - told > _PROGRESS_EVERY:
            self._said = (text, now)
            self._voice.say(Progress(text, share, PATIENCE))


def _goes_without_saying(driven: Driven) -> bool:
    """Whether a model is called as all of transformers are."""
    return driven.wish is None


def _named(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token that ended a text; its number where it has none to show."""
    try:
        text = tokenizer.decode(token).strip()
    except KvtraceError:
        text = ""
    return text or f"token {token}"


def wish_of(loaded: Loaded) -> Wish:
    """What a loaded model shall be driven to do, and what is known of it."""
    from kvtrace.record.driving import Wish

    return Wish(
        loaded.prompt.ids,
        loaded.new_tokens,
        loaded.context_length,
        loaded.card.vocab_size,
        loaded.script,
        loaded.functions,
        loaded.remake,
    )
