"""What to load, and what the user allows: plain values that travel to the child process.

Knows no torch: whether a dtype, device or attention name is possible is asked when loading.
"""

from __future__ import annotations

from msgspec import Struct

from kvtrace.errors import UsageError
from kvtrace.text import safe

AUTO = "auto"


class LoadRequest(Struct, frozen=True):
    """A model as the user asked for it; every field is plain JSON.

    Attributes:
        spec: Hub id, directory, built-in name, `file.py:factory` or `package.module:factory`;
            the prefixes `hf:` and `./` are exact.
        prompt: Text to record; None takes the built-in's story, or the start token. Bytes that
            are not UTF-8 may arrive as surrogate escapes, as they do in `sys.argv`.
        new_tokens: Decode steps; None takes the built-in's number, or what fits, up to
            `unasked_tokens`.
        unasked_tokens: The most decode steps where no number was asked for.
        dtype: "auto" (as the weights are stored) or a torch float type.
        device: "auto" (an accelerator if there is one; a user's code stays where it is), "cpu",
            "cuda:0", …
        attention: "auto" or an attention implementation of transformers ("sdpa", "eager", …).
        revision: Branch, tag or commit on the hub; empty is its main branch.
        allow_missing: Go on when weights are missing or of another shape, with a banner.
        allow_pickle: Unpickle weights, which runs code that they bring.
        trust_remote_code: Run the repository's own Python files.
        cpu: In a user's script, `.cuda()` and `device="cuda"` mean the CPU.
        definitions: Of a user's script, run only imports, definitions and plain values.
    """

    spec: str
    prompt: str | None = None
    new_tokens: int | None = None
    unasked_tokens: int = 32
    dtype: str = AUTO
    device: str = AUTO
    attention: str = AUTO
    revision: str = ""
    allow_missing: bool = False
    allow_pickle: bool = False
    trust_remote_code: bool = False
    cpu: bool = False
    definitions: bool = False

    def __post_init__(self) -> None:
        if not self.spec.strip() or "\0" in self.spec:
            raise UsageError(
                f"no model was named (found {safe(self.spec)!r}); "
                "try `demo`, a hub id such as gpt2, or a directory"
            )
        if self.new_tokens is not None and self.new_tokens < 0:
            raise UsageError(f"-n is {self.new_tokens}; it must be 0 or more new tokens")
