"""The way to the hub: its own address or that of a proxy, as the environment names them."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import constants
from msgspec import Struct

from kvtrace.configs import NO_ADDRESS, address
from kvtrace.errors import HubError
from kvtrace.text import safe


class Route(Struct, frozen=True):
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
    host, port = _address(constants.ENDPOINT, "HF_ENDPOINT")
    proxies = getproxies()
    scheme = urlsplit(constants.ENDPOINT).scheme
    name = next((one for one in (scheme, "all") if proxies.get(one)), "")
    if not name or proxy_bypass(host):
        return Route(host, port)
    proxy, variable = proxies[name], f"{name.upper()}_PROXY"
    # host and port alone: a proxy's address may carry a password
    host, port = _address(proxy if "://" in proxy else f"http://{proxy}", variable)
    return Route(host, port, f"through {variable}, {safe(host, 40)}:{port}")


def _address(words: str, variable: str) -> tuple[str, int]:
    found = address(words)
    if found is None:
        raise HubError(f"{variable} {NO_ADDRESS}")
    return found
