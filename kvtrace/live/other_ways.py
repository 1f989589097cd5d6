"""After a run that is to be checked: the other ways in which caches break, each told as it ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kvtrace.files import open_trace
from kvtrace.live.messages import Progress, Request, Tried
from kvtrace.live.orders import Orders
from kvtrace.live.voice import Voice
from kvtrace.verify.ways import beside

if TYPE_CHECKING:
    from kvtrace.models import Loaded
    from kvtrace.record.driving import Driven
    from kvtrace.verify.plans import Plan


def try_other_ways(
    loaded: Loaded, driven: Driven, request: Request, path: Path, voice: Voice, orders: Orders
) -> None:
    """Drive the model in every way that was asked for, into traces beside the run's own.

    Args:
        loaded: What is driven.
        driven: How it was called.
        request: What was asked for; its output is how people call the run's own trace.
        path: The same from everywhere: the model's code may be in another folder by now.
        voice: Told of each way.
        orders: Obeyed between them.

    Raises:
        WriteError: A trace can't be written.
    """
    if not request.ways:
        return
    from kvtrace.analysis.checks.verdict import keeps_nothing
    from kvtrace.analysis.checks.whole_run.leftover import beyond
    from kvtrace.record.driving import afresh
    from kvtrace.verify.plans import plans
    from kvtrace.verify.trials import tokens_of, tried

    voice.say(Tried("decode", "", request.output))
    trace = open_trace(path)
    if not trace.meta.sites:
        return  # nothing that could be wrong, in any way of driving

    def begin(plan: Plan) -> bool:
        voice.say(Progress(f"trying another way: {plan.title}"))
        return not orders.stopped

    with loaded.around():
        ways = None if request.ways == "all" else request.ways.split(",")
        planned = plans(
            loaded.model,
            tokens_of(trace),
            lambda *prompt: afresh(driven, loaded.model, *prompt),
            ways=ways,
            script=loaded.script,
            alone=trace.step(trace.numbers[0]).new if keeps_nothing(trace) else 0,
        )
        for one in tried(
            planned,
            lambda way: beside(path, way),
            tokenizer=loaded.tokenizer,
            card=loaded.card,
            fresh=beyond(trace),
            begin=begin,
        ):
            told = "" if one.path is None else str(beside(request.output, one.way))
            voice.say(Tried(one.way, one.title, told, one.trouble, one.presumed))
