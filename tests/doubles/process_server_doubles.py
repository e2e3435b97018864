"""Doubles for tests of links and of the process server: a small CA, items made from their number, a master target that
keeps what it receives, and a configuration server that answers heartbeats with a fixed assignment."""

from __future__ import annotations

import asyncio
import datetime
import json
import random
import ssl
import threading
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from failback.model.components import Role
from failback.model.ids import NO_GROUP, DiskId, MachineId, MarkId, PassId
from failback.model.stream import Codec, GapCause, MarkKind
from failback.protocol.extents import EXTENT
from failback.protocol.frames import RawItem
from failback.protocol.messages import Ack, Batch, DigestReply, Digests, Hello, StreamDisk, Welcome
from failback.runtime import records
from failback.transport.identity import Identity
from failback.transport.link import Link, LinkServer, LinkTimes, serve_links

QUICK = LinkTimes(ping_seconds=0.3, dead_seconds=15.0, handshake_seconds=5.0)
IMPATIENT = LinkTimes(ping_seconds=0.3, dead_seconds=2.0, handshake_seconds=5.0)


class Authority:
    """A certificate authority for one test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test CA")])
        self.pem = self._sign(self._name, self._key, True).public_bytes(serialization.Encoding.PEM)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "ca.pem").write_bytes(self.pem)

    def identity(
        self,
        component_id: str,
        role: Role,
        directory: Path | None = None,
        *,
        days: tuple[int, int] = (-1, 1),
        self_signed: bool = False,
    ) -> Identity:
        """An enrolled identity, in the layout that ``transport.identity`` reads. ``days``: valid from and until, from now."""
        directory = directory or self.directory / f"{role.value}-{component_id}"
        directory.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [
                x509.NameAttribute(x509.NameOID.COMMON_NAME, component_id),
                x509.NameAttribute(x509.NameOID.ORGANIZATIONAL_UNIT_NAME, role.value),
            ]
        )
        certificate = self._sign(subject, key, False, days, key if self_signed else None)
        (directory / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (directory / "ca.pem").write_bytes(self.pem)
        (directory / "key.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        (directory / "component.json").write_text(json.dumps({"component_id": component_id, "role": role.value}))
        return Identity(component_id, role, directory)  # type: ignore[arg-type]

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        is_ca: bool,
        days: tuple[int, int] = (-1, 1),
        own_key: ec.EllipticCurvePrivateKey | None = None,
    ) -> x509.Certificate:
        signer = own_key or self._key
        now = datetime.datetime.now(datetime.UTC)
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost")])
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if own_key else self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=days[0]))
            .not_valid_after(now + datetime.timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(_usage(is_ca), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
            .add_extension(names, critical=False)
            .sign(signer, hashes.SHA256())
        )


def _usage(is_ca: bool) -> x509.KeyUsage:
    """What Python 3.13 demands of certificates (VERIFY_X509_STRICT), as the product's own CA gives it."""
    return x509.KeyUsage(
        digital_signature=not is_ca, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=is_ca, crl_sign=is_ca, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def make_hello(machine_id: str, epoch: int = 1, **fields: Any) -> Hello:
    disk = StreamDisk(DiskId(str(uuid.UUID(int=7))), 0, 1 << 30)
    return Hello(MachineId(machine_id), epoch, "test", 1, 1, (disk,), **fields)


def make_batch(machine_id: str, sequence: int, *, epoch: int = 1, payload_bytes: int = 4096) -> Batch:
    """The same batch for the same numbers, every time: bytes can be compared at the other end."""
    payload = random.Random(f"{machine_id}/{epoch}/{sequence}").randbytes(payload_bytes)
    extents = EXTENT.pack(0, 1, 0, payload_bytes, sequence * 4096) + EXTENT.pack(0, 2, 0, 4096, 0)
    return Batch(
        MachineId(machine_id), NO_GROUP, epoch, sequence, (sequence - 1) * 100, sequence * 100, 1_700_000_000_000_000_000,
        5, GapCause.NONE, MarkKind.NONE, MarkId(""), Codec.RAW, payload_bytes, extents, payload,
    )  # fmt: skip


def make_digests(machine_id: str, sequence: int, *, epoch: int = 1, count: int = 8) -> Digests:
    digests = random.Random(sequence).randbytes(16 * count)
    return Digests(
        MachineId(machine_id), epoch, sequence, sequence * 100, PassId(str(uuid.UUID(int=9))), 0, 65536, 0, 77, digests
    )


@dataclass
class KeptStream:
    items: list[RawItem] = field(default_factory=list)
    links: int = 0
    ring: int = 0
    hellos: list[Hello] = field(default_factory=list)

    @property
    def landed(self) -> int:
        return len(self.items)


class KeepingMasterTarget:
    """Lands every item that comes in order, in memory. ``hold`` set: reads nothing more until it is cleared."""

    def __init__(self, identity: Identity, incarnation: str = "journal-1") -> None:
        self.identity = identity
        self.incarnation = incarnation
        self.streams: dict[tuple[str, int], KeptStream] = {}
        self.flow = asyncio.Event()
        self.flow.set()
        self.server: LinkServer | None = None
        self.changed = asyncio.Condition()
        self.refuse: Exception | None = None

    async def start(self, port: int = 0) -> int:
        self.server = await serve_links("127.0.0.1", port, self.identity, self._accept, times=QUICK)
        return self.server.port

    async def close(self) -> None:
        if self.server is not None:
            await self.server.close()

    async def _accept(self, link: Link, hello: Hello) -> None:
        if self.refuse is not None:
            raise self.refuse
        stream = self.streams.setdefault((hello.machine_id, hello.epoch), KeptStream())
        stream.links += 1
        stream.hellos.append(hello)
        at = (stream.landed, stream.ring)
        await link.send(Welcome(1, "test", hello.epoch, *at, *at, self.incarnation))
        while True:
            item = await link.receive()
            await self.flow.wait()
            assert isinstance(item, RawItem)
            if item.header.sequence != stream.landed + 1:
                return  # an older link of the same stream
            stream.items.append(item)
            stream.ring = item.header.end_position
            at = (stream.landed, stream.ring)
            link.send_small(Ack(hello.epoch, *at, *at, self.incarnation))
            decoded = item.decode()
            if isinstance(decoded, Digests):
                count = len(decoded.digests) // 16
                link.send_small(
                    DigestReply(decoded.machine_id, decoded.epoch, decoded.sequence, decoded.pass_id,
                                decoded.disk_index, decoded.first_block, count, bytes((count + 7) // 8))
                )  # fmt: skip
            async with self.changed:
                self.changed.notify_all()

    async def wait_for(self, machine_id: str, sequence: int, *, epoch: int = 1, seconds: float = 60.0) -> KeptStream:
        async with asyncio.timeout(seconds), self.changed:
            while True:
                stream = self.streams.get((machine_id, epoch))
                if stream is not None and stream.landed >= sequence:
                    return stream
                await self.changed.wait()


class FixedControlPlane:
    """An HTTPS server that answers every heartbeat with one assignment and keeps the last status."""

    def __init__(self, identity: Identity) -> None:
        self.assignment: object = None
        self.generation = 0
        self.orders: list[dict[str, Any]] = []
        self.reports: list[dict[str, Any]] = []
        self.status: dict[str, Any] = {}
        self._news = threading.Condition()
        self._stopped = False
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(identity.certificate_path, identity.key_path)
        context.load_verify_locations(identity.ca_path)
        context.verify_mode = ssl.CERT_OPTIONAL
        plane = self

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                answer = json.dumps(plane.answer(body)).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                return

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """Clients that are killed are part of the tests."""

        self._server = Server(("127.0.0.1", 0), Answer)
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def assign(self, assignment: object) -> None:
        with self._news:
            self.assignment = records.encode(assignment)
            self.generation += 1
            self._news.notify_all()

    def answer(self, heartbeat: dict[str, Any]) -> dict[str, Any]:
        with self._news:
            self.status = heartbeat["status"]
            self.reports = heartbeat["reports"]
            if heartbeat["assignment_generation"] >= self.generation:
                self._news.wait(min(heartbeat["wait_seconds"], 0.3))
            news = heartbeat["assignment_generation"] < self.generation
            return {
                "wall_ns": 1,
                "assignment_generation": self.generation,
                "assignment": self.assignment if news else None,
                "orders": self.orders,
            }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
