"""What the user called the model: a hub id, a directory, a built-in, or a factory in their code.

Looks at the file system only to ask whether a directory of that name exists.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from msgspec import Struct

from kvtrace.errors import UsageError
from kvtrace.paths import NOTEBOOK, home, is_file, is_folder
from kvtrace.text import safe
from kvtrace_fixtures import BUILT_IN

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?")
_NAMES = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
_FACTORY = re.compile(rf"(?P<where>.+):(?P<name>{_NAMES})")
_DOTTED = re.compile(_NAMES)
_WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_SITES = ("https://huggingface.co/", "https://hf.co/", "huggingface.co/")
_EXACT_PATH = ("./", "../", "/", "~")

Kind = Literal["built-in", "directory", "hub", "file", "module"]


class Source(Struct, frozen=True):
    """Where a model comes from.

    Attributes:
        kind: What sort of place.
        name: What the trace and the screen call it; no directory above the model's own.
        place: Path of a directory or file, id of a hub repository, or dotted module.
        factory: Function, class or variable, or one of such a one's (`GPT.from_config`), for files
            and modules; empty: the obvious one.
        note: A sentence when the name could have meant something else, else empty.
    """

    kind: Kind
    name: str
    place: str
    factory: str = ""
    note: str = ""


def parse_spec(spec: str) -> Source:
    """Decide what a model name means.

    Raises:
        UsageError: It can't mean anything; says what it could have been.
    """
    if spec.startswith("hf:"):
        return _hub(spec.removeprefix("hf:"))
    if spec in BUILT_IN:
        note = f"built-in {spec}; ./{spec} is the directory" if Path(spec).is_dir() else ""
        return Source("built-in", spec, str(BUILT_IN[spec].directory), note=note)
    notebook = spec.partition(":")[0]
    if notebook.endswith(".ipynb"):
        raise UsageError(f"{safe(spec)}: {NOTEBOOK.format(safe(notebook))}")
    if found := _FACTORY.fullmatch(spec):
        return _code(found["where"], found["name"])
    path = home(spec)
    if spec.endswith((".py", ".py:")):
        return _code(spec.removesuffix(":"), "")
    if is_folder(path):
        ambiguous = not spec.startswith(_EXACT_PATH) and _HUB_ID.fullmatch(spec)
        note = f"the directory ./{spec} was used; hf:{spec} is the hub's" if ambiguous else ""
        return Source("directory", f"./{path.resolve().name}", str(path), note=note)
    if is_file(path):
        raise UsageError(
            f"{safe(spec)}: a file, where a model directory is expected; {_instead(path)}"
        )
    if spec.startswith(_EXACT_PATH):
        raise UsageError(f"{safe(spec)}: no such directory; hf:NAME names a model on the hub")
    return _hub(spec)


def _instead(path: Path) -> str:
    """What to name instead of a file."""
    if path.suffix == ".kvt":
        return "`kvtrace open` reads traces"
    if path.suffix == ".gguf":
        return "it is packed for llama.cpp: take the model's repository in safetensors format"
    if path.suffix in _WEIGHTS and not is_file(path.with_name("config.json")):
        return (
            "weights alone are no model: name the function that builds it and loads them, "
            "kvtrace my_model.py:build"
        )
    return "name its directory"


def _hub(repo: str) -> Source:
    for site in _SITES:
        repo = repo.removeprefix(site)
    if not _HUB_ID.fullmatch(repo):
        raise UsageError(
            f"{safe(repo)}: neither a directory here nor a hub id (owner/name); "
            f"built in are {', '.join(BUILT_IN)}"
        )
    return Source("hub", repo, repo)


def _code(where: str, factory: str) -> Source:
    if where.endswith(".py"):
        path = home(where)
        if not is_file(path):
            raise UsageError(f"{safe(where)}: no such file")
        name = f"{path.name}:{factory}" if factory else path.name
        return Source("file", name, str(path), factory)
    if not _DOTTED.fullmatch(where):
        raise UsageError(
            f"{safe(where)}:{factory}: expected path/to/file.py:factory or package.module:factory"
        )
    return Source("module", f"{where}:{factory}", where, factory)
