"""A server that dies while it works on a command's first request is waited for, and asked with the same request id again."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from pathlib import Path

import pytest

from failback.cli import client
from failback.cli.settings import Settings
from failback.errors import PeerError


def _read_request(connection: socket.socket) -> str:
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    return re.findall(r"x-ms-client-request-id: (\S+)", received.decode().lower())[0]


def _settings(tmp_path: Path, port: int) -> Settings:
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o600)
    return Settings(
        server=f"http://127.0.0.1:{port}", ca_file=Path("/etc/ssl/certs/ca-certificates.crt"), token_file=token
    )


def test_dies_in_the_first_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PATIENCE_AT_FIRST_SECONDS", 0.2)
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    seen: list[str] = []

    def serve() -> None:
        connection, _ = listening.accept()
        seen.append(_read_request(connection))
        listening.close()
        connection.close()
        time.sleep(1)  # longer than the patience with a server that was never reached
        with socket.create_server(("127.0.0.1", port)) as again, again.accept()[0] as connection:
            seen.append(_read_request(connection))
            body = json.dumps({"name": "job"}).encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    thread = threading.Thread(target=serve)
    thread.start()
    with client.Api(_settings(tmp_path, port)) as api:
        assert api.post("/anything") == {"name": "job"}
    thread.join()
    assert len(seen) == 2
    assert seen[0] == seen[1]


def test_a_server_that_was_never_there_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PATIENCE_AT_FIRST_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    began = time.monotonic()
    with client.Api(_settings(tmp_path, port)) as api, pytest.raises(PeerError, match="does not answer"):
        api.get("/anything")
    assert time.monotonic() - began < 5
