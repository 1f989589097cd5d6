"""What somebody's configuration and environment say, asked carefully.

Settings may be properties that raise: some say one value for each layer, and refuse to be asked
for one of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

_CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "block_size",
    "context_length",
    "max_seq_length",
    "ctx_len",
)
_PORTS = {"https": 443, "socks5": 1080, "socks5h": 1080}


def setting(config: object, name: str) -> object:
    """A setting; None where it is not said, or not once for all layers."""
    try:
        return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    except Exception:
        return None


def word(config: object, name: str) -> str:
    """A setting that is text; else nothing."""
    found = setting(config, name)
    return found if isinstance(found, str) else ""


def count(config: object, *names: str) -> int:
    """The first of some settings that is a positive integer; 0: none is."""
    found = (setting(config, name) for name in names)
    return next((one for one in found if type(one) is int and one > 0), 0)


def context_length(config: object) -> int:
    """Positions that a model was made for; 0 when it does not say."""
    return count(config, *_CONTEXT)


NO_ADDRESS = "is not an address such as https://HOST:PORT; correct or unset it"
"""What to say of a variable of the environment that should hold one."""


def address(words: str) -> tuple[str, int] | None:
    """Host and port of an address of the network; None where it is none."""
    try:
        parts = urlsplit(words)
        port = parts.port or _PORTS.get(parts.scheme, 80)
    except ValueError:
        return None
    return (parts.hostname, port) if parts.hostname and parts.scheme else None
