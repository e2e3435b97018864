"""An agent whose certificate has expired tracks every write, enrols again by a token, and its disks are not compared."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from mobility_world import World, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="capturing needs root")

TOKEN = "the-one-time-token"


def certificate(world: World, public: Any, begin_seconds: float, end_seconds: float) -> bytes:
    """For the agent, of the world's authority, valid between these times from now."""
    now = dt.datetime.now(dt.UTC)
    old = x509.load_pem_x509_certificate((world.directory / "state/identity/certificate.pem").read_bytes())
    builder = x509.CertificateBuilder().subject_name(old.subject).issuer_name(old.issuer).public_key(public)
    for extension in old.extensions:
        if not isinstance(extension.value, x509.SubjectKeyIdentifier):
            builder = builder.add_extension(extension.value, extension.critical)
    begin, end = (now + dt.timedelta(seconds=seconds) for seconds in (begin_seconds, end_seconds))
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(end)
    key = world.authority._key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


async def test_expired_tracks_on_and_comes_back_by_a_token(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("")
    token_file.chmod(0o600)
    async with World(tmp_path, sizes=(32 << 20,), control_toml=f'token_file = "{token_file}"') as world:
        heartbeats = 0
        answer = world.plane.answer

        def answering(body: dict[str, Any]) -> dict[str, Any]:
            nonlocal heartbeats
            if "csr_pem" not in body:
                heartbeats += 1
                return answer(body)
            assert body["token"] == TOKEN
            request = x509.load_pem_x509_csr(body["csr_pem"].encode())
            made = certificate(world, request.public_key(), -60, 86_400)
            return {
                "component_id": world.machine_id,
                "certificate_pem": made.decode(),
                "ca_pem": world.authority.pem.decode(),
            }

        world.plane.answer = answering  # type: ignore[method-assign]
        world.plane.assign(world.assignment())
        world.start()
        await world.synced(60)
        world.kill()
        own = world.directory / "state/identity/certificate.pem"
        public = x509.load_pem_x509_certificate(own.read_bytes()).public_key()
        own.write_bytes(certificate(world, public, -120, -60))
        heard = heartbeats
        world.start()  # it knows its assignment from before
        await world.until(lambda: "certificate has expired" in world.log(), 60)
        await world.until(lambda: "capture is open reattached=True" in world.log(), 60)
        run("dd", "if=/dev/urandom", f"of={world.devices[0]}", "bs=64k", "count=40", "oflag=direct", "conv=notrunc")
        assert heartbeats == heard, "nothing is heard from it"
        token_file.write_text(TOKEN)
        await world.until(lambda: heartbeats > heard, 60)
        await world.settled(60)
        assert world.same()
        assert world.plane.status["sync"] == [], "nothing was compared"
        assert "another certificate is in use" in world.log()
