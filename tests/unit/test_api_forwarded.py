"""What a proxy says counts only from a proxy that the configuration names."""

from __future__ import annotations

from typing import Any

import pytest

from failback.configuration_server.api import forwarded
from failback.errors import ConfigurationError

PROXIES = forwarded.parse(["192.0.2.20", "10.0.0.0/24"])


def told(client: str, **headers: str) -> dict[str, Any]:
    sent = [
        (b"host", b"inside:8443"),
        *((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()),
    ]
    scope: dict[str, Any] = {"type": "http", "client": (client, 4000), "scheme": "https", "headers": sent}
    forwarded.as_forwarded(scope, PROXIES)
    return scope


def host(scope: dict[str, Any]) -> str:
    [found] = [value.decode() for name, value in scope["headers"] if name == b"host"]
    return str(found)


def test_a_named_proxy_is_believed() -> None:
    scope = told(
        "10.0.0.7", x_forwarded_for="203.0.113.9", x_forwarded_host="failback.example", x_forwarded_proto="https",
        x_forwarded_prefix="/dr",
    )  # fmt: skip
    assert (scope["client"][0], host(scope), scope["failback.prefix"]) == ("203.0.113.9", "failback.example", "/dr")


def test_anybody_else_is_not() -> None:
    before = told("203.0.113.9")
    after = told("203.0.113.9", x_forwarded_for="1.2.3.4", x_forwarded_host="evil.example", x_forwarded_prefix="/x")
    assert (after["client"], host(after)) == (before["client"], host(before))
    assert "failback.prefix" not in after


@pytest.mark.parametrize(
    ("chain", "caller"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("1.1.1.1, 203.0.113.9", "203.0.113.9"),  # the caller wrote the first one himself
        ("203.0.113.9, 192.0.2.20", "203.0.113.9"),  # two proxies of ours
        ("192.0.2.20", "192.0.2.20"),
        ("not-an-address", "10.0.0.7"),
        ("203.0.113.9, x, 192.0.2.20", "192.0.2.20"),
        ("", "10.0.0.7"),
        ("2001:db8::1", "2001:db8::1"),
    ],
)
def test_the_caller_is_the_last_who_is_no_proxy(chain: str, caller: str) -> None:
    assert told("10.0.0.7", x_forwarded_for=chain)["client"][0] == caller


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x_forwarded_host": "cs.example", "x_forwarded_port": "8443"}, "cs.example:8443"),
        ({"x_forwarded_host": "cs.example", "x_forwarded_port": "443"}, "cs.example"),
        ({"x_forwarded_host": "cs.example:9", "x_forwarded_port": "8443"}, "cs.example:9"),
        ({"x_forwarded_host": "[2001:db8::1]:9"}, "[2001:db8::1]:9"),
        ({"x_forwarded_host": "outer.example, inner.example"}, "outer.example"),
        ({"x_forwarded_host": "evil.example/path?"}, "inside:8443"),
        ({"x_forwarded_host": "a b"}, "inside:8443"),
    ],
)
def test_the_address_is_the_outermost_proxys(headers: dict[str, str], expected: str) -> None:
    assert host(told("10.0.0.7", **headers)) == expected


def test_what_is_no_path_is_no_prefix() -> None:
    for prefix in ("dr", "/a b", "//x", "/" + "x" * 65, "/a\r\nb"):
        assert "failback.prefix" not in told("10.0.0.7", x_forwarded_prefix=prefix)


def test_a_wrong_address_in_the_configuration_is_told() -> None:
    with pytest.raises(ConfigurationError, match="trusted_proxies"):
        forwarded.parse(["10.0.0.300"])
