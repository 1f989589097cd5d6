"""`kvtrace.record(model, path)`: record whatever runs inside."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from kvtrace.errors import KvtraceError, UsageError, WriteError
from kvtrace.files import TraceWriter
from kvtrace.record.card import card, versions
from kvtrace.record.check import SelfCheck
from kvtrace.record.companions import Companions
from kvtrace.record.forward import Beginning
from kvtrace.record.generate import Generation, follow_generate
from kvtrace.record.lanes import LaneOptions, Lanes
from kvtrace.record.ranks import Share, of_rank, own_path, rank_of
from kvtrace.record.recorder import Options, Recorder
from kvtrace.record.texts import Texts
from kvtrace.record.watch import Watch
from kvtrace.text import safe
from kvtrace.trace import Ending, Meta, ModelCard, Note, Sampling, Step

_ALONE = "not every rank that shares this model records, and it only runs on all of them together"


class Recording:
    """A recording under way: a context manager.

    Attributes:
        path: The trace file.
        recorder: Turns forwards into steps.
    """

    def __init__(
        self,
        model: nn.Module,
        path: Path,
        meta: Meta,
        options: Options,
        *,
        lanes: LaneOptions,
        force: bool,
    ) -> None:
        """Nothing happens before `with`."""
        self.path = path
        self._lanes = Lanes(model, path, lanes, self._unwatched)
        self._on_step = options.on_step
        options.on_step = self._written
        if lanes.mode != "off":
            options.on_forward = self._lanes.forward
        self._model = model
        self._meta = meta
        self._options = options
        self._force = force
        self._writer: TraceWriter | None = None
        self._watch: Watch | None = None
        self._unfollow: Callable[[], None] | None = None
        self._ending: Ending | None = None
        self._others: Companions | None = None
        self.recorder: Recorder | None = None

    def __enter__(self) -> Recording:
        """Create the file, watch the model.

        Raises:
            OutputExistsError: The file exists, or can't be created.
        """
        self._writer = TraceWriter(self.path, self._meta, force=self._force)
        try:
            if self._meta.rank is not None and self._lanes.options.mode != "off":
                self._others = Companions(self.path, self._meta.rank)
            recorder = Recorder(self._model, self._writer, self._meta, self._options)
            self.recorder = recorder
            self._watch = Watch(
                self._model,
                recorder.forward,
                on_begin=self._begin,
                on_failure=recorder.failed,
            )
            self._watch.__enter__()
            self._unfollow = follow_generate(self._model, self._generation)
        except BaseException:
            self._close(Ending("error", "the recording could not begin"))
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        ending = self._ending or Ending("done")
        if error is not None:
            text = safe(f"{type(error).__name__}: {error}", 500)
            interrupted = isinstance(error, KeyboardInterrupt)
            ending = Ending("stopped", text) if interrupted else Ending("error", text)
        self._close(ending)

    @property
    def steps(self) -> int:
        """Forwards recorded so far."""
        return 0 if self.recorder is None else self.recorder.num_steps

    def stop(self, ending: Ending | None = None) -> None:
        """End the recording now; the model goes on unwatched. Safe to call twice."""
        self._close(ending or self._ending or Ending("stopped"))

    def end_with(self, ending: Ending) -> None:
        """Say why it ended, to be written at the exit."""
        self._ending = ending

    def choose(self, token: int) -> None:
        """The token chosen after the last forward of one sequence."""
        if self.recorder is not None:
            self.recorder.choose((token,))

    def _begin(self, beginning: Beginning) -> None:
        """A forward is about to run."""
        recorder = self.recorder
        if recorder is not None and recorder.failure is None and not recorder.paused:
            self._lanes.begin(beginning)
            recorder.begin(beginning)

    @contextmanager
    def _unwatched(self) -> Iterator[None]:
        """Lanes run the model too; what they do is no step of the recording."""
        watch, recorder = self._watch, self.recorder
        before = recorder.paused if recorder is not None else False
        if recorder is not None:
            recorder.paused = True
        try:
            with nullcontext() if watch is None else watch.unwatched():
                yield
        finally:
            if recorder is not None:
                recorder.paused = before

    def _written(self, step: Step) -> None:
        """A step is in the file."""
        each = self._lanes.options.mode == "each" and self._agree(ready=True)
        if each and self.recorder is not None and self._writer is not None:
            try:
                self.recorder.meta = self._lanes.written(step, self.recorder.meta, self._writer)
            except WriteError as error:
                self.recorder.failure = error
        if self._on_step is not None:
            self._on_step(step)

    def _generation(self, run: Generation) -> None:
        """`generate` begins, or has ended."""
        recorder = self.recorder
        if recorder is None:
            return
        recorder.phases.prompt_rows = None if run.over else run.prompt_rows
        if run.over:
            recorder.flush(run.last_tokens(recorder.last))
            if run.ending is not None:
                self._ending = run.ending

    def _close(self, ending: Ending) -> None:
        if self._unfollow is not None:
            self._unfollow()
            self._unfollow = None
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.__exit__(None, None, None)
        writer = self._writer
        if writer is None:
            return
        failure: KvtraceError | None = None
        try:
            failure = self._last_words(writer, watch, ending)
        except WriteError as error:
            failure = error
        finally:
            self._writer = None
            try:
                writer.close()
            except WriteError as error:
                failure = failure or error
        if failure is not None:
            warnings.warn(f"recording stopped: {failure}", RuntimeWarning, stacklevel=3)

    def _last_words(
        self, writer: TraceWriter, watch: Watch | None, ending: Ending
    ) -> KvtraceError | None:
        """The step that waits, what was not seen, the other lanes, and why it ended."""
        recorder = self.recorder
        if recorder is not None:
            recorder.flush()
            if watch is not None:
                recorder.tell(watch.unseen, watch.notes)
            if recorder.failure is not None:
                self._agree(ready=False)
                return recorder.failure
            if self._agree(ready=ending.reason != "error"):
                self._compare(recorder, writer)
            elif self._others is not None:
                writer.note(Note("note", f"the tokens were not recomputed: {_ALONE}"))
        writer.end(ending)
        return None

    def _agree(self, *, ready: bool) -> bool:
        """Whether other lanes can be computed: where ranks share the model, all of them must."""
        return ready if self._others is None else self._others.agree(ready=ready)

    def _compare(self, recorder: Recorder, writer: TraceWriter) -> None:
        """The other lanes; a model that can't be run without its cache is not the run's failure."""
        try:
            self._lanes.finish(recorder.meta, writer)
        except WriteError:
            raise
        except Exception as error:
            cause = safe(f"{type(error).__name__}: {error}", 300)
            writer.note(Note("note", f"the tokens were not recomputed: {cause}"))


def record(  # noqa: PLR0913 - the public face: one keyword for each thing a caller may say
    model: nn.Module | str | Path,
    path: str | Path | None = None,
    *,
    recompute: str = "once",
    tokenizer: object = None,
    prompt: str = "",
    name: str | None = None,
    force: bool = False,
    referee: bool = False,
    keep_rows: bool = False,
    model_card: ModelCard | None = None,
    sampling: Sampling | None = None,
    on_step: Callable[[Any], None] | None = None,
) -> Recording:
    """Record what a model's attention consumes, step by step, while the `with` block runs.

    `with kvtrace.record(model, "a.kvt"): model.generate(...)` or any loop of your own.

    Args:
        model: What is called inside.
        path: The trace file to write; where several processes share the model's heads, each
            writes its own: `run.kvt` becomes `run.rank0.kvt` (see `Recording.path`).
        recompute: "once", "each" or "off": how the same tokens are computed without a cache.
        tokenizer: Gives texts of ids: has `decode`, or is called with one id.
        prompt: Text of the prompt, for the reader.
        name: What to call the model; by default its class.
        force: Replace an existing file.
        referee: Compute the same tokens in a higher precision too.
        keep_rows: Keep the other lanes' rows however large; else up to 256 MiB a pass.
        model_card: All that is said of the model, where the caller knows more than the module.
        sampling: How tokens are chosen, where the caller knows.
        on_step: Told of each step that was written.

    Raises:
        UsageError: An argument is wrong.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"record: found {type(model).__name__} as the model, expected a torch.nn.Module; "
            "call kvtrace.record(model, path)"
        )
    if path is None:
        raise UsageError("record: no path was given; call kvtrace.record(model, 'name.kvt')")
    if recompute not in ("once", "each", "off"):
        raise UsageError(f"record: recompute={recompute!r}; expected 'once', 'each' or 'off'")
    meta = Meta(
        model=model_card or card(model, name),
        sampling=sampling or Sampling(driver="caller"),
        versions=versions(),
        prompt=prompt,
    )
    rank = rank_of(model)
    if rank is not None:
        meta = of_rank(meta, rank)
    options = Options(Texts(_text_of(tokenizer)), SelfCheck(), on_step)
    options.placed = None if rank is None else Share(model, rank).placed
    lanes = LaneOptions(recompute, referee, keep_rows)
    own = own_path(Path(path), rank)
    return Recording(model, own, meta, options, lanes=lanes, force=force)


def _text_of(tokenizer: object) -> Callable[[int], str] | None:
    """A function from one id to its text."""
    if tokenizer is None:
        return None
    tokenize: Any = tokenizer
    if hasattr(tokenizer, "convert_ids_to_tokens"):
        return lambda token: str(tokenize.decode([token], clean_up_tokenization_spaces=False))
    if hasattr(tokenizer, "decode"):
        return lambda token: str(tokenize.decode(token))
    return lambda token: str(tokenize(token))
