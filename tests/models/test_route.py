"""Where a connection to the hub goes first, told from the environment alone."""

import os

import pytest
from huggingface_hub import constants

from kvtrace.errors import HubError
from kvtrace.models.hub.route import Route, route


@pytest.fixture
def environment(monkeypatch):
    """Sets the proxies that a test names, and no others."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    return monkeypatch


def test_without_a_proxy_the_hub_itself_is_asked(environment):
    assert route() == Route("hub.example", 443)
    environment.setattr(constants, "ENDPOINT", "http://127.0.0.1:8080")
    assert route() == Route("127.0.0.1", 8080)


@pytest.mark.parametrize(
    ("proxy", "host", "port"),
    [
        ("http://user:secret@10.0.0.1:3128", "10.0.0.1", 3128),
        ("10.0.0.1:3128", "10.0.0.1", 3128),
        ("http://proxy.example", "proxy.example", 80),
        ("socks5://proxy.example", "proxy.example", 1080),
    ],
)
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY"])
def test_a_proxy_is_asked_and_named_without_its_password(environment, variable, proxy, host, port):
    environment.setenv(variable, proxy)
    found = route()
    assert (found.host, found.port) == (host, port)
    assert found.told("nobody there") == f"through {variable}, {host}:{port}: nobody there"


def test_hosts_that_need_no_proxy_are_asked_directly(environment):
    environment.setenv("ALL_PROXY", "http://10.0.0.1:3128")
    environment.setenv("NO_PROXY", "hub.example")
    assert route() == Route("hub.example", 443)


@pytest.mark.parametrize("proxy", ["http://", "http://a:99999", "http://a:b", "http://[::1"])
def test_a_proxy_that_is_no_address_is_named(environment, proxy):
    environment.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(HubError, match=r"^HTTPS_PROXY is not an address"):
        route()


@pytest.mark.parametrize(
    "endpoint", ["garbage", "https://", "hub.example:443", "http://a:99999", "http://[::1"]
)
def test_an_endpoint_that_is_no_address_is_named(environment, endpoint):
    environment.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(HubError, match=r"^HF_ENDPOINT is not an address"):
        route()
