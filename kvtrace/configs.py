"""What somebody's configuration and environment say, asked carefully.

Settings may be properties that raise: some say one value for each layer, and refuse to be asked
for one of all.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from kvtrace.errors import HubError

_PORTS = {"https": 443, "socks5": 1080, "socks5h": 1080}


def setting(config: object, name: str) -> object:
    """A setting; None where it is not said, or not once for all layers."""
    try:
        return getattr(config, name, None)
    except Exception:
        return None


def count(config: object, *names: str) -> int:
    """The first of some settings that is a positive integer; 0: none is."""
    found = (setting(config, name) for name in names)
    return next((one for one in found if type(one) is int and one > 0), 0)


def address(words: str, variable: str) -> tuple[str, int]:
    """Host and port that a variable of the environment names.

    Raises:
        HubError: It holds no address.
    """
    try:
        parts = urlsplit(words)
        port = parts.port or _PORTS.get(parts.scheme, 80)
    except ValueError:
        parts, port = urlsplit(""), 0
    if not (parts.hostname and parts.scheme):
        raise HubError(
            f"{variable} is not an address such as https://HOST:PORT; correct or unset it"
        )
    return parts.hostname, port
