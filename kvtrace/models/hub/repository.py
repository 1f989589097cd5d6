"""A hub repository to a directory: the cache first, then one probe, then the files it takes.

Only files that loading needs are fetched, all of one commit. What the hub does wrong becomes a
message by cause in `hub_faults`. Knows nothing of what is in the files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache

from kvtrace.errors import HubError, ModelError, TrustError
from kvtrace.models.hub.adapter import ADAPTER
from kvtrace.models.hub.config import CONFIG
from kvtrace.models.hub.faults import (
    COMMIT,
    altered,
    by_cause,
    shown_endpoint,
    silent,
    unreachable,
)
from kvtrace.models.hub.route import route
from kvtrace.models.hub.weights import INDEX, PICKLE, PICKLE_INDEX, SAFETENSORS, shard_names
from kvtrace.models.loaded import Progress
from kvtrace.models.patience import Patience, patiently
from kvtrace.models.request import LoadRequest

T = TypeVar("T")

_SMALL_ENDINGS = (".json", ".jinja", ".model", ".tiktoken", "merges.txt", "vocab.txt")
_MOST_RESTARTS = 3
_SHA256 = re.compile(r"[0-9a-f]{64}")
_INDICES = {INDEX: "safetensors", PICKLE_INDEX: "pickle"}

Judge = Callable[[Path, str], object]
"""Given the directory with the small files and the commit; raises before weights are fetched."""


class _Meter:
    """Counts the bytes of one file, and sees when they come no further."""

    def __init__(self, show: Callable[[float | None], None]) -> None:
        self._show = show
        self.furthest = 0
        self._restarts = 0

    def moved(self, done: int, total: int | None, back: bool) -> None:
        """So many bytes are there; `back`: fewer than before, the download starts again."""
        self._restarts += back
        if done > self.furthest:
            self.furthest, self._restarts = done, 0
        if self._restarts > _MOST_RESTARTS:
            raise OSError("cut off at the same place each time")
        self._show(done / total if total else None)

    def bar(self) -> type[object]:
        """A class that stands where huggingface_hub expects a progress bar."""
        meter = self

        class Bar:
            def __init__(self, total: int | None = None, initial: int = 0, **_: object) -> None:
                self.total, self.n = total, initial

            def __enter__(self) -> Bar:
                return self

            def __exit__(self, *error: object) -> None:
                return None

            def update(self, count: float = 1) -> None:
                self.n += int(count)
                meter.moved(self.n, self.total, count < 0)

        return Bar


class Hub:
    """One repository at one revision."""

    def __init__(self, request: LoadRequest, repo: str, progress: Progress, wait: Patience) -> None:
        self._request, self._repo, self._progress, self._wait = request, repo, progress, wait
        self._revision = request.revision or "main"

    def directory(self, judge: Judge) -> tuple[Path, str, str]:
        """The repository's files on this disk, its commit, and a sentence on how they came.

        Raises:
            HubError: Not cached, and the hub can't be reached, refuses, or misbehaves.
            KvtraceError: Whatever `judge` raises.
        """
        if folder := self._cached():
            judge(folder, folder.name)
            return folder, folder.name, "from the cache"
        folder = self._fetch(judge)
        return folder, folder.name, f"downloaded from {shown_endpoint()}"

    def _cached(self) -> Path | None:
        """The snapshot of the revision, if all it takes is there."""
        found = try_to_load_from_cache(self._repo, CONFIG, revision=self._revision)
        if not isinstance(found, str):
            return None
        folder = Path(found).parent
        return folder if self._complete(folder) else None

    def _complete(self, folder: Path) -> bool:
        if self._request.trust_remote_code and not list(folder.glob("*.py")):
            return '"auto_map"' not in (folder / CONFIG).read_text(errors="replace")
        if any((folder / single).is_file() for single in (SAFETENSORS, PICKLE)):
            return True
        for index in _INDICES:
            if (folder / index).is_file():
                return all((folder / name).is_file() for name in shard_names(folder / index))
        return False

    def _fetch(self, judge: Judge) -> Path:
        if constants.HF_HUB_OFFLINE:
            raise unreachable(self._repo, "HF_HUB_OFFLINE is set")
        self._probe()
        commit, names = self._list()
        if ADAPTER in names and not {SAFETENSORS, INDEX, PICKLE, PICKLE_INDEX} & set(names):
            raise ModelError(
                f"{self._repo}: an adapter (LoRA), which is only part of a model; name a directory "
                f"with its files: hf download {self._repo} --local-dir my-adapter"
            )
        if CONFIG not in names:
            raise ModelError(f"{self._repo}: the repository has no {CONFIG}; it can't be loaded")
        folder = Path(self._download(CONFIG, self._revision)).parent
        if folder.name != commit:
            folder = Path(self._download(CONFIG, commit)).parent
        for name in _small_files(names, self._request.trust_remote_code):
            self._download(name, commit)
        judge(folder, commit)
        for name in self._weights(names, commit):
            self._download(name, commit)
        return folder

    def _probe(self) -> None:
        """One connection to the hub (or the proxy before it), so that offline is known at once."""
        way, limit = route(), self._wait.connect_s
        self._progress(f"{self._repo} is not cached: asking {shown_endpoint()}", None)
        too_long = unreachable(self._repo, way.told(f"no connection within {limit:.0f} s"))
        try:
            # name resolution has no timeout of its own, hence the watched thread
            patiently(lambda: way.connect(limit), limit, lambda: too_long)
        except OSError as error:
            raise unreachable(self._repo, way.told(error.strerror or str(error))) from None

    def _list(self) -> tuple[str, list[str]]:
        """Commit of the revision, and names of the files at the top of the repository."""
        limit = self._wait.answer_s

        def ask() -> tuple[str, list[str]]:
            told = HfApi().model_info(self._repo, revision=self._revision, timeout=limit)
            names = [file.rfilename for file in told.siblings or []]
            return str(told.sha), [name for name in names if Path(name).name == name]

        commit, names = self._watched(ask, limit, lambda: None, "the list of files")
        if not COMMIT.fullmatch(commit) or not names:
            raise HubError(
                f"{self._repo}: {shown_endpoint()} named no commit or files; is it a model hub?"
            )
        return commit, names

    def _download(self, name: str, revision: str) -> str:
        told = f"downloading {self._repo}: {name}"
        meter = _Meter(lambda share: self._progress(told, share))

        def fetch() -> str:
            return str(hf_hub_download(self._repo, name, revision=revision, tqdm_class=meter.bar()))

        self._progress(told, None)
        found = self._watched(fetch, self._wait.download_s, lambda: meter.furthest, name)
        self._check(Path(found), name)
        return found

    def _check(self, link: Path, name: str) -> None:
        """Large files are called by their SHA-256 in the cache: one that lies must not stay."""
        blob = link.resolve()
        if not _SHA256.fullmatch(blob.name):
            return
        self._progress(f"checking {self._repo}: {name}", None)
        with blob.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == blob.name:
                return
        link.unlink()
        blob.unlink(missing_ok=True)
        raise altered(self._repo, name)

    def _watched(
        self, call: Callable[[], T], limit: float, pulse: Callable[[], object], what: str
    ) -> T:
        try:
            return patiently(call, limit, lambda: silent(self._repo, what, limit), pulse)
        except HubError:
            raise
        except Exception as error:
            raise by_cause(error, self._repo, self._request.revision, what) from error

    def _weights(self, names: list[str], commit: str) -> list[str]:
        """The weight files to fetch; safetensors before pickles."""
        pickles = [PICKLE, PICKLE_INDEX]
        for name in (SAFETENSORS, INDEX, *(pickles if self._request.allow_pickle else [])):
            if name not in names:
                continue
            return (
                [name] if name not in _INDICES else shard_names(Path(self._download(name, commit)))
            )
        if set(pickles) & set(names):
            raise TrustError(
                f"{self._repo}: its weights are only there as a pickle, which can run any code "
                f"when it is read; look for one with {SAFETENSORS}, or pass --allow-pickle"
            )
        raise ModelError(f"{self._repo}: the repository has no {SAFETENSORS}")


def _small_files(names: list[str], code: bool) -> list[str]:
    """Configuration and tokenizer files, and Python files where they are trusted."""
    wanted = (*_SMALL_ENDINGS, ".py") if code else _SMALL_ENDINGS
    return [name for name in names if name.endswith(wanted) and name not in (CONFIG, *_INDICES)]
