"""Behind a proxy: what the caller used as this server's address, and who the caller is.

``X-Forwarded-Proto``, ``-Host``, ``-Port``, ``-Prefix`` and ``-For`` count only when the connection comes from an address of
``trusted_proxies``; from anybody else they are ignored, so nobody can choose the address in the audit or in the URLs of
others. The URLs that a caller is answered (``Location``, ``nextLink``, sign-in) then are the proxy's.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Any

from failback.errors import ConfigurationError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Proxies = Sequence[Network]

_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]{1,64}){1,8}")


def parse(addresses: Sequence[str]) -> Proxies:
    """Addresses and networks (``10.0.0.0/8``). Raises ConfigurationError."""
    try:
        return tuple(ipaddress.ip_network(address, strict=False) for address in addresses)
    except ValueError as error:
        raise ConfigurationError(
            f"trusted_proxies: {error}", remedy="list IP addresses, or networks such as 10.0.0.0/24"
        ) from None


def as_forwarded(scope: Any, proxies: Proxies) -> None:
    """Change the ASGI scope to what the proxy says of the call; nothing when the peer is no trusted proxy."""
    client = scope.get("client")
    if not client or not _trusted(client[0], proxies):
        return
    said = {name: value.decode("latin-1") for name, value in scope["headers"] if name.startswith(b"x-forwarded-")}
    scheme = _first(said.get(b"x-forwarded-proto", ""))
    host, port = _first(said.get(b"x-forwarded-host", "")), _first(said.get(b"x-forwarded-port", ""))
    prefix = _first(said.get(b"x-forwarded-prefix", "")).rstrip("/")
    if scheme in ("http", "https"):
        scope["scheme"] = scheme
    if _HOST.fullmatch(host):
        has_port = host.rpartition("]")[2].find(":") >= 0
        named = host if has_port or not port.isdigit() or port in ("80", "443") else f"{host}:{port}"
        others = [(name, value) for name, value in scope["headers"] if name != b"host"]
        scope["headers"] = [(b"host", named.encode("ascii")), *others]
    if _PREFIX.fullmatch(prefix):  # the proxy has taken it off the path; URLs need it again
        scope["failback.prefix"] = prefix
    scope["client"] = (_caller(said.get(b"x-forwarded-for", ""), client[0], proxies), client[1])


def _first(header: str) -> str:
    """Of a list, what the outermost proxy said."""
    return header.partition(",")[0].strip()


def _caller(header: str, peer: str, proxies: Proxies) -> str:
    """The last address that no trusted proxy has: what stands before it, the caller may have written himself."""
    found = peer
    for address in reversed([part.strip() for part in header.split(",") if part.strip()]):
        try:
            found = str(ipaddress.ip_address(address))
        except ValueError:
            return found
        if not _trusted(found, proxies):
            return found
    return found


def _trusted(address: str, proxies: Proxies) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in network for network in proxies)


def base_url(request: Any) -> str:
    """Scheme, host and prefix under which the caller reached this server, without a slash at the end."""
    return f"{str(request.base_url).rstrip('/')}{request.scope.get('failback.prefix', '')}"
