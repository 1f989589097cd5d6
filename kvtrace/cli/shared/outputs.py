"""Where a trace goes, and that nothing is overwritten by accident.

With -o, there. A watched run without -o goes to a cache folder of the user's, where the newest
few are kept; a headless one to the current directory, under a name that is free.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from pathlib import Path

from kvtrace.errors import OutputExistsError
from kvtrace.paths import home, leads_nowhere

KEPT = 10
"""Watched runs that stay in the cache folder."""


def chosen(path: Path, *, force: bool) -> Path:
    """The path the user named, once it is plain that a trace can go there.

    Raises:
        OutputExistsError: It exists, is a directory, or its folder is missing or read-only.
    """
    try:
        folder = path.is_dir()
    except OSError as error:
        raise OutputExistsError(f"{path}: {error.strerror}; -o names another") from None
    if folder:
        raise OutputExistsError(f"{path}: is a directory; name a file in it")
    if path.exists() and not path.is_file():
        raise OutputExistsError(f"{path}: is not a regular file, and a trace must be one")
    if leads_nowhere(path):
        raise OutputExistsError(
            f"{path}: is a link that leads to no file; remove it, or name another file with -o"
        )
    if path.exists() and not force:
        raise OutputExistsError(f"{path}: the file exists; --force replaces it, -o names another")
    _check_room(path)
    return path


def report(word: str) -> Path:
    """The file a report goes to, once it is plain that it can: before the work is done.

    Raises:
        OutputExistsError: It is a directory, or its folder is missing or read-only.
    """
    path = Path(word)
    try:
        there, folder = path.exists(), path.is_dir()
    except OSError as error:
        raise OutputExistsError(f"{path}: {error.strerror}; name another file") from None
    if folder:
        raise OutputExistsError(f"{path}: is a directory; name a file in it")
    if not there:
        _check_room(path)
    return path


def _check_room(path: Path) -> None:
    if not path.parent.is_dir():
        raise OutputExistsError(f"{path}: there is no directory {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise OutputExistsError(f"{path}: can't write in {path.parent.resolve()}")


def beside(model: str) -> Path:
    """A free name in the current directory, such as gpt2.kvt or gpt2-2.kvt."""
    return chosen(_free(Path(), _slug(model)), force=False)


def _free(folder: Path, name: str) -> Path:
    path, number = folder / f"{name}.kvt", 1
    while path.exists():
        number += 1
        path = folder / f"{name}-{number}.kvt"
    return path


def temporary(model: str) -> Path:
    """A new name in the cache folder; older traces beyond the newest few are removed.

    Raises:
        OutputExistsError: The folder can't be made.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise OutputExistsError(
            f"{folder}: {error.strerror}; name a file for the trace with -o"
        ) from None
    _forget_old(folder)
    # two may begin within a second, and neither has written anything yet
    moment = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    return chosen(_free(folder, f"{_slug(model)}-{moment}"), force=False)


def cache_folder() -> Path:
    """Of watched runs; XDG Base Directory Specification 0.8.

    Raises:
        OutputExistsError: There is no home directory, as in some containers.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not root.is_absolute():
        root = home("~") / ".cache"
        if not root.is_absolute():
            raise OutputExistsError(
                "there is no home directory to keep the trace in; name a file for it with -o, "
                "or set XDG_CACHE_HOME"
            )
    return root / "kvtrace"


def _forget_old(folder: Path) -> None:
    """Remove all but the newest, never one that is being written."""
    with contextlib.suppress(OSError):
        traces = sorted(folder.glob("*.kvt"), key=lambda path: path.stat().st_mtime)
        for path in traces[: -(KEPT - 1)]:
            if not _in_use(path):
                path.unlink(missing_ok=True)


def _in_use(path: Path) -> bool:
    """Whether a writer holds its lock."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _slug(model: str) -> str:
    """The last part of a model's name, in characters that every file system takes."""
    last = re.sub(r"\.py(:.*)?$", "", model.rstrip("/")).rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-.")[:40] or "trace"
