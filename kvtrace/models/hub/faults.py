"""What the hub did wrong, by cause, as one sentence with a remedy.

Causes are told apart by status code and by the names of exception classes, because the HTTP
library under huggingface_hub has changed before.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from huggingface_hub import constants, get_token

from kvtrace.errors import HubError
from kvtrace.text import safe

COMMIT = re.compile(r"[0-9a-f]{40}")
_DEFAULT_HOST = "huggingface.co"
_DEMO = "the built-in demo needs no network: kvtrace demo"


def shown_endpoint() -> str:
    """The hub's host; of another one, that HF_ENDPOINT names it, and that it gets the token."""
    # the host alone: an endpoint may carry a password
    parts = urlsplit(constants.ENDPOINT)
    host = (parts.hostname or "?") + (f":{parts.port}" if parts.port else "")
    if host == _DEFAULT_HOST:
        return host
    return f"{safe(host)} (HF_ENDPOINT{'; your token goes there' if get_token() else ''})"


def unreachable(repo: str, cause: str) -> HubError:
    """Not cached, and no connection."""
    return HubError(
        f"{repo}: not cached here, and {shown_endpoint()} can't be reached ({safe(cause, 80)}): "
        f"offline? {_DEMO}"
    )


def silent(repo: str, what: str, seconds: float) -> HubError:
    """Connected, and then nothing."""
    return HubError(
        f"{repo}: {shown_endpoint()} accepted the connection but sent nothing more of {what} for "
        f"{seconds:.0f} s; try again later, or {_DEMO}"
    )


def altered(repo: str, what: str) -> HubError:
    """A whole file, and not the one that was announced."""
    return HubError(
        f"{repo}: what {shown_endpoint()} sent as {what} has not the SHA-256 that it names; it was "
        "removed from the cache. Try again; a proxy of the network may have changed it"
    )


def by_cause(error: BaseException, repo: str, revision: str, what: str) -> HubError:
    """The message for whatever huggingface_hub raised while fetching `what`."""
    chain = list(_chain(error))
    status = next((code for each in chain if (code := _status(each))), 0)
    kinds = {kind.__name__ for each in chain for kind in type(each).__mro__}
    cause = _by_status(status, kinds, revision) or _by_kind(kinds, chain, what)
    return HubError(f"{repo}: {cause.format(hub=shown_endpoint())}")


def _by_status(status: int, kinds: set[str], revision: str) -> str:
    """A sentence for an HTTP refusal; empty when it was none."""
    login = "log in with `hf auth login`"
    if "GatedRepoError" in kinds:
        return f"gated: ask for access on its page on {{hub}}, then {login}"
    if "RevisionNotFoundError" in kinds:
        return f"{{hub}} has no revision {safe(revision or 'main')!r} of it"
    if status >= 500:
        return f"{{hub}} is out of order ({status}); try again later, or {_DEMO}"
    told = {
        401: f"{{hub}} does not know it, or it is private (401); check the name, or {login}",
        403: "{hub} refuses it to you (403): your token has no right to it",
        404: "{hub} has no such model or file (404); check the name, ./NAME is a directory",
        429: f"{{hub}} says too many requests (429); wait some minutes, or {login}",
    }
    return told.get(status, f"{{hub}} answered {status}" if status >= 400 else "")


_HTML = (
    "{hub} answered {what} with something else, such as an HTML page: a login page of the "
    "network, or a proxy?"
)
_PART = "{hub} sent only a part of {what}; try again"
# The first that fits: class names of exceptions, words of their messages, the sentence.
_BY_KIND: tuple[tuple[set[str], tuple[str, ...], str], ...] = (
    (
        {"SSLError"},
        ("certificate verify",),
        "the certificate of {hub} is not trusted ({told}); a proxy?",
    ),
    ({"JSONDecodeError", "FileMetadataError"}, ("validation",), _HTML),
    (
        {"ReadTimeout", "PoolTimeout", "WriteTimeout"},
        (),
        "{hub} accepted the connection but did not answer in time; " + _DEMO,
    ),
    (set(), ("incomplete", "consistency check", "cut off", "without sending complete"), _PART),
    (
        {"ReadError", "RemoteProtocolError", "ConnectionResetError", "WriteError"},
        (),
        "{hub} broke the connection off during {what} ({told}); try again",
    ),
    (
        {"ConnectError", "ConnectTimeout", "ConnectionError", "ProxyError"},
        (),
        "the connection to {hub} failed ({told}); " + _DEMO,
    ),
    ({"PermissionError"}, ("no space left", "read-only"), "{what} can't be stored ({told})"),
)


def _by_kind(kinds: set[str], chain: list[BaseException], what: str) -> str:
    """A sentence for a failed transfer."""
    told = safe(str(chain[-1]) or type(chain[-1]).__name__, 120)
    text = " ".join(str(each) for each in chain).lower()
    fitting = (
        sentence
        for names, words, sentence in _BY_KIND
        if kinds & names or any(word in text for word in words)
    )
    sentence = next(fitting, "fetching {what} from {hub} failed ({told})")
    return sentence.format(hub="{hub}", what=what, told=told.replace("{", "(").replace("}", ")"))


def _chain(error: BaseException) -> list[BaseException]:
    """An exception and what caused it, the outermost first."""
    chain: list[BaseException] = []
    now: BaseException | None = error
    while now is not None and now not in chain:
        chain.append(now)
        now = now.__cause__ or now.__context__
    return chain


def _status(error: BaseException) -> int:
    code = getattr(getattr(error, "response", None), "status_code", 0)
    return code if isinstance(code, int) else 0
