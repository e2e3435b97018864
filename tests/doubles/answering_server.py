"""An HTTPS server that answers every POST with one status and one content, with the certificate that it is given."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from failback.configuration_server.enrolment.authority import Authority
from failback.model.components import Role
from failback.transport import identity


class Answers:
    """What is said now, and what was heard last."""

    def __init__(self, status: int, content: bytes) -> None:
        self.status, self.content = status, content
        self.received = b""
        self.count = 0
        self.url = ""


@contextmanager
def listening(certificate: Path, key: Path, status: int = 200, content: bytes = b"{}") -> Iterator[Answers]:
    answers = Answers(status, content)

    class Told(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answers.received = self.rfile.read(int(self.headers["Content-Length"]))
            answers.count += 1
            said = answers.content
            self.send_response(answers.status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Told)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    answers.url = f"https://127.0.0.1:{server.server_address[1]}"
    try:
        yield answers
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def component(authority: Authority, role: Role, directory: Path, names: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """Certificate and key of a component ``c1`` as an enrolment makes them."""
    directory.mkdir()
    key_pem, csr_pem = identity.key_and_request(role)
    issued = authority.issue(csr_pem, "c1", role, names)
    (directory / "key.pem").write_bytes(key_pem)
    (directory / "certificate.pem").write_text(issued.certificate_pem)
    (directory / "ca.pem").write_text(authority.ca_pem)
    return directory / "certificate.pem", directory / "key.pem"
