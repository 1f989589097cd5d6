"""From a request to a model that passed every check: the one way in.

Joins the parts; each check lives in the file named after it.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from msgspec.structs import replace

from kvtrace.errors import ModelError, UsageError
from kvtrace.models import memory
from kvtrace.models.hub.adapter import ADAPTER, Adapter, is_adapter, put_on, read_adapter
from kvtrace.models.hub.directory import Origin, judge, load_directory
from kvtrace.models.hub.repository import Hub
from kvtrace.models.loaded import Loaded, Progress
from kvtrace.models.patience import Patience
from kvtrace.models.quiet import quiet
from kvtrace.models.request import LoadRequest
from kvtrace.models.scripts.script import load_script
from kvtrace.models.spec import Source, parse_spec
from kvtrace.text import safe
from kvtrace_fixtures import BUILT_IN


def load(request: LoadRequest, progress: Progress, wait: Patience | None = None) -> Loaded:
    """Find, check and load a model with its tokenizer and encoded prompt.

    Args:
        request: What the user asked for and allows.
        progress: Called with what is being done, and the share done where it is known.
        wait: Time limits on what may never answer.

    Raises:
        KvtraceError: UsageError, ModelError, HubError, MemoryLimitError or TrustError, each
            with one line that says what to do.
    """
    with quiet():
        return _load(request, progress, wait or Patience())


def _load(request: LoadRequest, progress: Progress, wait: Patience) -> Loaded:
    source = parse_spec(request.spec)
    if request.revision and source.kind != "hub":
        raise UsageError(
            f"--revision {safe(request.revision)}: {source.name} is a {source.kind}, which has no "
            "revisions; hf:NAME names a model on the hub"
        )
    if source.kind in ("file", "module"):
        return load_script(source, request, progress)
    if source.kind == "hub":
        hub = Hub(request, source.place, progress, wait)
        folder, commit, how = hub.directory(
            lambda place, at: judge(place, at, request.trust_remote_code)
        )
        origin = Origin(source.name, commit, f"{source.name} {how}, commit {commit[:12]}")
    elif is_adapter(folder := Path(source.place)):
        return _adapted(
            read_adapter(folder, request.allow_pickle), source.name, request, progress, wait
        )
    else:
        origin = Origin(source.name, chosen=source.note or f"{source.kind} {source.name}")
    if source.kind == "built-in":
        request = _built_in(request, source.name)
    return load_directory(folder, origin, request, progress, wait)


def _adapted(
    adapter: Adapter, name: str, request: LoadRequest, progress: Progress, wait: Patience
) -> Loaded:
    """The base model that an adapter names, with the adapter on it."""
    source = _base_of(adapter)
    revision = adapter.revision if source.kind == "hub" else ""
    loaded = _load(replace(request, spec=adapter.base, revision=revision), progress, wait)
    model, pin = put_on(loaded.model, adapter), adapter.weights.pin()
    card = replace(
        loaded.card,
        name=name,
        weights=f"{loaded.card.weights} + {pin}" if loaded.card.weights and pin else "",
        parameter_count=memory.parameter_count(model),
        weight_bytes=memory.parameter_bytes(model),
    )
    return replace(loaded, model=model, card=card, chosen=f"adapter {name} on {loaded.chosen}")


def _base_of(adapter: Adapter) -> Source:
    """Where the base model of an adapter is: a directory or the hub, no code."""
    why = f"{safe(adapter.base)}: neither a base model nor its directory"
    try:
        source = parse_spec(adapter.base)
        if source.kind not in ("file", "module") and not is_adapter(Path(source.place)):
            return source
    except UsageError as error:
        why = str(error)
    raise ModelError(
        f"{ADAPTER}, base_model_name_or_path: {why}; write the base model's directory there"
    )


def _built_in(request: LoadRequest, name: str) -> LoadRequest:
    """Make its architecture known, and take its own story where the user gave none."""
    own = BUILT_IN[name]
    if own.architecture:
        import_module(own.architecture).register()
    if request.prompt is not None:
        return request
    steps = request.new_tokens
    if steps is None:
        steps = min(own.new_tokens, request.unasked_tokens)
    return replace(request, prompt=own.prompt, new_tokens=steps)
