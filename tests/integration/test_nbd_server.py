"""The NBD server with its real clients (nbdinfo, nbdcopy, qemu-img, qemu-io), on a unix socket and by TLS."""

from __future__ import annotations

import random
import shutil
import socket
import ssl
import struct
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from process_server_doubles import Authority

from failback.block.nbd import NbdDevice
from failback.block.nbd_options import Export
from failback.block.nbd_server import MOST_CONNECTIONS, NbdServer
from failback.block.raw import RawDevice, create_sparse
from failback.model.components import Role

SIZE = (3 << 20) + 512
VIEW = str(uuid.UUID(int=7))


def _run(*command: str, ok: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode == 0) is ok, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[RawDevice]:
    create_sparse(tmp_path / "disk", SIZE)
    device = RawDevice(tmp_path / "disk")
    device.write(65536, random.Random(1).randbytes(300_000 // 4096 * 4096))
    device.write(SIZE - 512, b"e" * 512)
    yield device
    device.close()


@pytest.fixture
def unix(tmp_path: Path, disk: RawDevice) -> Iterator[str]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "nbd"))
    listener.listen()
    exports = {"read": Export("read", disk, False), "write": Export("write", disk, True)}
    server = NbdServer(listener, lambda name, _: exports.get(name), lambda: list(exports))
    yield str(tmp_path / "nbd")
    server.close()
    server.close()


def test_clients_in_the_clear(unix: str, disk: RawDevice, tmp_path: Path) -> None:
    uri = f"nbd+unix:///read?socket={unix}"
    assert "is_read_only: true" in _run("nbdinfo", uri)
    listed = _run("nbdinfo", "--list", f"nbd+unix:///?socket={unix}")
    assert 'export="read"' in listed and 'export="write"' in listed
    allocation = _run("nbdinfo", "--map", uri)
    assert "hole" in allocation and "data" in allocation
    _run("nbdcopy", uri, str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "disk").read_bytes()
    _run("qemu-img", "compare", "-f", "raw", "-F", "raw", f"nbd+unix:///read?socket={unix}", str(tmp_path / "copy"))
    refused = _run("qemu-io", "-f", "raw", "-c", "write 0 512", uri, ok=False)
    assert "read-only" in refused.lower() or "permi" in refused.lower()
    missing = _run("nbdinfo", f"nbd+unix:///other?socket={unix}", ok=False)
    assert "No such file" in missing


def test_writing_clients(unix: str, disk: RawDevice, tmp_path: Path) -> None:
    uri = f"nbd+unix:///write?socket={unix}"
    fresh = tmp_path / "fresh"
    fresh.write_bytes((random.Random(2).randbytes(1 << 20) + bytes(1 << 20)).ljust(SIZE, b"z"))
    _run("nbdcopy", str(fresh), uri)
    assert disk.read(0, SIZE) == fresh.read_bytes()
    _run("qemu-io", "-f", "raw", "-c", "write -P 5 1536 9000", "-c", "discard 1M 64k", "-c", "flush", uri)
    expected = bytearray(fresh.read_bytes())
    expected[1536:10536] = bytes([5]) * 9000
    assert disk.read(0, 1 << 20) == expected[: 1 << 20]
    assert disk.read(1 << 20, 65536) == bytes(65536)
    past = _run("qemu-io", "-f", "raw", "-c", f"write {SIZE} 512", uri, ok=False)
    assert past


def test_our_own_client(unix: str, disk: RawDevice) -> None:
    device = NbdDevice(Path(unix), "write")
    device.write(4096, b"q" * 512)
    device.zero(8192, 4096)
    device.flush()
    assert device.size_bytes == SIZE and device.read(4096, 512) == b"q" * 512 and disk.read(8192, 4096) == bytes(4096)
    device.close()


def test_what_is_no_client_holds_nothing(unix: str) -> None:
    """Garbage, half a handshake and too many connections: others are served at once afterwards."""
    silent = []
    for content in (
        b"",
        b"GET / HTTP/1.1\r\n\r\n" * 10,
        b"\x00\x00\x00\x03",
        b"\x00\x00\x00\x03IHAVEOPT" + b"\xff" * 8,
    ):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(unix)
        connection.sendall(content)
        silent.append(connection)
    greedy = socket.socket(socket.AF_UNIX)
    greedy.connect(unix)
    greedy.sendall(b"\x00\x00\x00\x03IHAVEOPT" + struct.pack(">II", 3, 1 << 31))
    greedy.settimeout(10)
    while greedy.recv(4096):
        pass  # the server ends it: an option is never that long
    for _ in range(MOST_CONNECTIONS):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(unix)
        silent.append(connection)
    for connection in silent:
        connection.close()
    deadline = time.monotonic() + 20
    while subprocess.run(["nbdinfo", f"nbd+unix:///read?socket={unix}"], capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _tls_directory(directory: Path, authority: Authority, common_name: str) -> Path:
    identity = authority.identity(common_name, Role.MASTER_TARGET, directory / "identity")
    place = directory / "tls"
    place.mkdir(parents=True)
    shutil.copy(authority.directory / "ca.pem", place / "ca-cert.pem")
    shutil.copy(identity.certificate_path, place / "client-cert.pem")
    shutil.copy(identity.key_path, place / "client-key.pem")
    return place


def test_remote_clients_need_tls_and_the_certificate_of_the_view(tmp_path: Path, disk: RawDevice) -> None:
    authority = Authority(tmp_path / "ca")
    identity = authority.identity(str(uuid.uuid4()), Role.MASTER_TARGET)
    export = Export(f"{VIEW}/0", disk, False)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = NbdServer(
        listener, lambda name, peer: export if name == export.name and peer == VIEW else None, lambda: [export.name],
        identity.server_context,
    )  # fmt: skip
    try:
        good = _tls_directory(tmp_path / "good", authority, VIEW)
        other = _tls_directory(tmp_path / "other", authority, str(uuid.uuid4()))
        strangers = _tls_directory(tmp_path / "stranger", Authority(tmp_path / "ca-2"), VIEW)
        place = f"localhost:{port}/{VIEW}%2F0"
        uri = f"nbds://{place}?tls-certificates={good}&tls-verify-peer=false"
        _run("nbdcopy", uri, str(tmp_path / "copy"))
        assert (tmp_path / "copy").read_bytes() == (tmp_path / "disk").read_bytes()
        assert "No such file" in _run(
            "nbdinfo", f"nbds://{place}?tls-certificates={other}&tls-verify-peer=false", ok=False
        )
        _run("nbdinfo", f"nbds://{place}?tls-certificates={strangers}&tls-verify-peer=false", ok=False)
        assert "TLS" in _run("nbdinfo", f"nbd://{place}", ok=False)
        listed = _run("nbdinfo", "--list", f"nbds://localhost:{port}/?tls-certificates={good}&tls-verify-peer=false")
        assert VIEW not in listed
        options = f"driver=nbd,host=localhost,port={port},export={VIEW}/0,tls-creds=tls0"
        secret = f"tls-creds-x509,id=tls0,endpoint=client,dir={good},verify-peer=no"
        shown = _run(
            "qemu-io", "-r", "--object", secret, "-c", f"read -P 101 {SIZE - 512} 512", "--image-opts", options
        )
        assert "read 512/512" in shown and "Pattern" not in shown
        plain = socket.create_connection(("127.0.0.1", port))
        raw = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        raw.check_hostname, raw.verify_mode = False, ssl.CERT_NONE
        with pytest.raises((OSError, EOFError)):
            raw.wrap_socket(plain)  # TLS without the NBD greeting is no client
        plain.close()
    finally:
        server.close()
