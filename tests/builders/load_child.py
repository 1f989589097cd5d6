"""Loads models in forks of one process that has the libraries imported already.

huggingface_hub reads HF_ENDPOINT and HF_HOME when it is imported, so the child is started with
them; a fork for each load keeps one load's caches and damage from the next.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

from msgspec import Struct, structs

SECONDS = 120


class Outcome(Struct, frozen=True):
    """What came of a load.

    Attributes:
        error: Class of the error, empty when it loaded.
        message: Of the error.
        exit_code: Of the error, 0 when it loaded.
        card: The model card as a dictionary.
        chosen, prompt, note, new_tokens, tokens: Of the loaded model; `tokens` the prompt's texts.
        progress: What was said on the way.
        seconds: It took.
    """

    error: str = ""
    message: str = ""
    exit_code: int = 0
    card: dict | None = None
    chosen: str = ""
    prompt: tuple[int, ...] = ()
    note: str = ""
    new_tokens: int = 0
    tokens: tuple[str, ...] = ()
    progress: tuple[str, ...] = ()
    seconds: float = 0.0


class LoadChild:
    """The process to ask; a context manager."""

    def __init__(self, **environment: str) -> None:
        paths = os.pathsep.join([str(Path(__file__).parent.parent)])
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": paths,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **environment,
        }

    def __enter__(self) -> LoadChild:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "builders.load_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment,
            text=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(SECONDS)
        self._process.stdout.close()

    def load(self, spec: str, cwd: Path | None = None, wait=None, env=None, **options) -> Outcome:
        """Load in a fork; `wait` are fields of Patience, `options` fields of LoadRequest."""
        assert self._process.stdin
        assert self._process.stdout
        asked = {
            "request": {"spec": spec, **options},
            "wait": wait or {},
            "cwd": str(cwd or Path.cwd()),
        }
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], SECONDS)
        assert ready, "the load did not end"
        told = json.loads(self._process.stdout.readline())
        for name in ("prompt", "tokens", "progress"):
            told[name] = tuple(told.get(name, ()))
        return Outcome(**told)


def main() -> None:
    """Fork for every line of standard input; the fork answers with one line."""
    import kvtrace.models  # noqa: F401 - imported once, before the forks

    for line in sys.stdin:
        child = os.fork()
        if not child:
            _answer(json.loads(line))
            os._exit(0)
        os.waitpid(child, 0)


def _answer(asked: dict) -> None:
    import time

    from kvtrace.errors import KvtraceError
    from kvtrace.models import LoadRequest, load
    from kvtrace.models.patience import Patience

    os.chdir(asked["cwd"])
    steps: list[str] = []
    start = time.monotonic()
    try:
        request = LoadRequest(**asked["request"])
        loaded = load(request, lambda text, share: steps.append(text), Patience(**asked["wait"]))
        tokens = [loaded.tokenizer.decode(each) for each in loaded.prompt.ids]
        outcome = Outcome(
            card=structs.asdict(loaded.card),
            chosen=loaded.chosen,
            prompt=loaded.prompt.ids,
            note=loaded.prompt.note,
            new_tokens=loaded.new_tokens,
            tokens=tuple(tokens),
        )
    except KvtraceError as error:
        outcome = Outcome(type(error).__name__, str(error), error.exit_code)
    except BaseException as error:
        outcome = Outcome(f"UNEXPECTED {type(error).__name__}", str(error), -1)
    told = structs.asdict(outcome) | {"progress": steps, "seconds": time.monotonic() - start}
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
