"""Peers that mean harm or know nothing: contexts without a right certificate, bytes that are no greeting, connections that
only hold a place. They come from addresses of their own (127.0.0.x): honest peers are not counted with them."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path

from process_server_doubles import Authority, make_hello

from failback.model.components import Role
from failback.protocol.frames import encode
from failback.transport.identity import Identity

STRANGERS = ("no certificate", "self-signed", "another authority", "expired", "not yet valid")
STRANGE_ADDRESS, FLOODING_ADDRESS = "127.0.0.66", "127.0.0.67"


def stranger(authority: Authority, directory: Path, name: str, component_id: str, role: Role) -> ssl.SSLContext:
    """Says that it is that component; only the proof is wrong."""
    place = directory / f"stranger-{name}-{role.value}"
    if name == "no certificate":
        return _context(None)
    if name == "another authority":
        return _context(Authority(directory / "another-ca").identity(component_id, role, place))
    days = {"expired": (-3, -1), "not yet valid": (1, 3)}.get(name, (-1, 1))
    return _context(authority.identity(component_id, role, place, days=days, self_signed=name == "self-signed"))


def _context(identity: Identity | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if identity is not None:
        context.load_cert_chain(identity.certificate_path, identity.key_path)
    return context


def greeting(machine_id: str) -> bytes:
    return b"".join(bytes(part) for part in encode(make_hello(machine_id)))


def knock(port: int, context: ssl.SSLContext, said: bytes, *, seconds: float = 15.0) -> bytes:
    """Connect, say it, and give every byte that comes back until the other side closes. Fails when it does not close."""
    answer = b""
    with (
        connect(port, STRANGE_ADDRESS, seconds) as plain,
        contextlib.suppress(ssl.SSLError, ConnectionError),
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(said)
        while part := connection.recv(65536):
            answer += part
    return answer


def connect(port: int, source: str, seconds: float = 15.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=seconds, source_address=(source, 0))


def garbage(seed: int) -> bytes:
    """Something that is no TLS, or only begins like it."""
    chance = random.Random(seed)
    noise = chance.randbytes(chance.choice((1, 5, 100, 5000)))
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    return chance.choice((
        noise, b"GET / HTTP/1.0\r\n\r\n", b"FBK1" + noise, hello, hello + noise, b"\x16\x03\x03\xff\xff" + noise,
        b"\x15\x03\x03\x00\x02\x02\x28", b"\x80\x2e\x01\x03\x01" + noise,
    ))  # fmt: skip


def throw_garbage(port: int, seed: int) -> None:
    """Say garbage and go, sometimes rudely (a reset)."""
    with contextlib.suppress(OSError), connect(port, STRANGE_ADDRESS, 5.0) as plain:
        plain.sendall(garbage(seed))
        if seed % 3 == 0:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif seed % 3 == 1:
            plain.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def half_open(port: int, count: int) -> Iterator[list[socket.socket]]:
    """That many connections which never finish (or never begin) their handshake."""
    held: list[socket.socket] = []
    try:
        for number in range(count):
            connection = connect(port, FLOODING_ADDRESS, 15.0)
            held.append(connection)
            if number % 2:
                with contextlib.suppress(OSError):
                    connection.sendall(b"\x16\x03\x01\x02\x00\x01"[: 1 + number % 6])
        yield held
    finally:
        for connection in held:
            connection.close()


def is_closed(connection: socket.socket, seconds: float = 15.0) -> bool:
    """True when the other side closes within that time (an alert may come before)."""
    connection.settimeout(seconds)
    try:
        while connection.recv(4096):
            continue
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def resident_megabytes(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def fresh_id() -> str:
    return str(uuid.uuid4())
