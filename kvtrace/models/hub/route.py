"""The way to the hub: its own address or that of a proxy, as the environment names them."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import constants

from kvtrace.errors import HubError
from kvtrace.text import safe

_PORTS = {"https": 443, "socks5": 1080, "socks5h": 1080}


@dataclass(frozen=True, slots=True)
class Route:
    """Where a connection to the hub goes first.

    Attributes:
        host, port: Of the hub, or of the proxy before it.
        through: The proxy as a message names it; empty without one.
    """

    host: str
    port: int
    through: str = ""

    def connect(self, limit: float) -> None:
        """Connect once, and leave.

        Raises:
            OSError: Nobody is there.
        """
        socket.create_connection((self.host, self.port), timeout=limit).close()

    def told(self, cause: str) -> str:
        """Why it fails, with the proxy where there is one."""
        return f"{self.through}: {cause}" if self.through else cause


def route() -> Route:
    """The way that requests to the hub take.

    Raises:
        HubError: A variable of the environment holds no address.
    """
    hub = urlsplit(constants.ENDPOINT)
    host, port = _address(hub, "HF_ENDPOINT")
    proxies = getproxies()
    name = next((one for one in (hub.scheme, "all") if proxies.get(one)), "")
    if not name or proxy_bypass(host):
        return Route(host, port)
    proxy, variable = proxies[name], f"{name.upper()}_PROXY"
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    except ValueError:
        raise _no_address(variable) from None
    # host and port alone: a proxy's address may carry a password
    host, port = _address(parts, variable)
    return Route(host, port, f"through {variable}, {safe(host, 40)}:{port}")


def _address(parts: SplitResult, variable: str) -> tuple[str, int]:
    try:
        port = parts.port or _PORTS.get(parts.scheme, 80)
    except ValueError:
        raise _no_address(variable) from None
    if not (parts.hostname and parts.scheme):
        raise _no_address(variable)
    return parts.hostname, port


def _no_address(variable: str) -> HubError:
    return HubError(f"{variable} is not an address such as https://HOST:PORT; correct or unset it")
