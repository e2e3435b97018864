"""``failback view`` and the gaps in ``failback points``, as a user runs them against a real server."""

from __future__ import annotations

import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from api_client import ITEM, SiteProcess
from cryptography import x509

from failback.block.nbd_options import Export
from failback.block.nbd_server import NbdServer
from failback.block.raw import RawDevice
from failback.configuration_server.enrolment.authority import Authority
from failback.model.components import Enrolled, Role
from failback.model.ids import ComponentId
from failback.transport.identity import _store, key_and_request, load


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteProcess]:
    with SiteProcess(tmp_path_factory.mktemp("views")) as running:
        _failback(running, "item", "import", "ledger", "--on-premises", "home-vm", "--cloud", "cloud:cloud-vm")
        yield running


def _failback(site: SiteProcess, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    settings = {
        "FAILBACK_SERVER": site.url, "FAILBACK_CA_FILE": str(site.ca_file), "FAILBACK_TOKEN_FILE": str(site.token_file),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "failback", *arguments], capture_output=True, text=True, timeout=90, stdin=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(site.directory), **settings}, check=False,
    )  # fmt: skip
    assert done.returncode == status, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def _eventually(look: Any, seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def test_views_and_gaps(site: SiteProcess) -> None:
    refused = _failback(site, "view", "open", "ledger", status=4)
    assert "no replica" in refused.stderr and "reprotect" in refused.stderr
    assert "no views" in _failback(site, "view", "list", "ledger").stderr
    _failback(
        site, "reprotect", "ledger", "--process-server", "process-server-1", "--master-target", "master-target-1",
        "--retention-volume", "retention", "--datastore", "store", "--yes",
    )  # fmt: skip
    points = json.loads(_failback(site, "points", "ledger", "--json").stdout)
    oldest = points[-1]["name"]
    opened = _failback(
        site, "view", "open", "ledger", "--point", oldest, "--lease", "30m", "--writable", "--quota", "2G"
    )
    assert f"point   {oldest}" in opened.stdout and "nbd+unix:///0?socket=" in opened.stdout
    assert "nbdcopy" in opened.stderr
    (listed,) = _eventually(lambda: json.loads(_failback(site, "view", "list", "ledger", "--json").stdout))
    own = listed["properties"]
    assert (own["state"], own["writable"], own["quotaBytes"], own["recoveryPointId"]) == ("Open", True, 2 << 30, oldest)
    assert site.call("GET", f"{ITEM}/views/{listed['name']}")[1]["properties"] == own
    renewed = _failback(site, "view", "open", "ledger", "--point", oldest, "--view", listed["name"], "--json")
    assert json.loads(renewed.stdout)["name"] == listed["name"]
    assert "open until" in _failback(site, "view", "list", "ledger").stdout
    _failback(site, "view", "close", "ledger", listed["name"])
    _eventually(lambda: "ended: closed" in _failback(site, "view", "list", "ledger").stdout)
    assert "no size" in _failback(site, "view", "open", "ledger", "--quota", "much", status=2).stderr
    assert site.call("PUT", f"{ITEM}/views/not-a-uuid", {})[0] == 400
    assert site.call("GET", f"{ITEM}/views/{uuid.uuid4()}")[0] == 404
    audited = (Path(site.directory) / "log").read_text()
    assert "Traceback" not in audited

    began = 1_800_000_000_000_000_000
    site.sites.knob("gaps", [["OVERFLOW", began, began + 10**10], ["SYNC", began + 10**12, 0]])
    shown = _eventually(
        lambda: (out := _failback(site, "points", "ledger").stdout) and "gap: SYNC" in out and out.splitlines()
    )
    rows = [line.split("\t") for line in shown]
    assert rows[1][3:] == ["gap: SYNC", "still open"]  # the newest row
    assert rows[2][1] == "2027-01-15T08:00:00Z" and rows[2][3:] == ["gap: OVERFLOW", "until 2027-01-15T08:00:10Z"]
    gaps = json.loads(_failback(site, "point", "gaps", "ledger", "--json").stdout)
    assert [gap["properties"]["cause"] for gap in gaps] == ["SYNC", "OVERFLOW"]
    assert gaps[0]["properties"]["ended"] is None
    assert "OVERFLOW" in _failback(site, "point", "gaps", "ledger").stdout


def test_a_view_is_read_from_another_host_with_a_certificate_for_it_alone(site: SiteProcess, tmp_path: Path) -> None:
    """The whole way of a remote client: the CLI's key, the server's certificate, our NBD server, the real nbdcopy."""
    refused = _failback(site, "view", "open", "ledger", "--remote", str(tmp_path / "none"), status=2)
    assert "its own host only" in refused.stderr and "view_listen_host" in refused.stderr
    (tmp_path / "disk").write_bytes(os.urandom(1 << 20))
    authority = Authority.open(site.directory / "state" / "ca")
    key_pem, request = key_and_request(Role.MASTER_TARGET)
    issued = authority.issue(request, "master-target-1", Role.MASTER_TARGET, ("127.0.0.1", "localhost"))
    enrolled = Enrolled(ComponentId("master-target-1"), issued.certificate_pem, authority.ca_pem)
    _store(tmp_path / "identity", Role.MASTER_TARGET, key_pem, enrolled)
    identity = load(tmp_path / "identity")
    assert identity is not None
    disk = RawDevice(tmp_path / "disk")
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def find(name: str, peer: str) -> Export | None:  # as the master target's own rule: the peer is the view
        return Export(name, disk, False) if name.partition("/")[0] == peer else None

    server = NbdServer(listener, find, lambda: (), identity.server_context)
    site.sites.knob("remote port", port)
    try:
        opened = json.loads(
            _failback(site, "view", "open", "ledger", "--remote", str(tmp_path / "one"), "--json").stdout
        )
        shown = _failback(site, "view", "open", "ledger", "--remote", str(tmp_path / "two")).stdout
        assert stat.S_IMODE((tmp_path / "one" / "client-key.pem").stat().st_mode) == 0o600
        assert "certificate" not in site.call("GET", f"{ITEM}/views/{opened['name']}")[1]["properties"]
        (mine,) = opened["properties"]["remoteUris"]
        assert mine.startswith("nbds://") and f":{port}/{opened['name']}%2F0" in mine
        mine = f"nbds://localhost:{port}/{opened['name']}%2F0"
        copied = f"{mine}?tls-certificates={tmp_path / 'one'}"
        subprocess.run(["nbdcopy", copied, str(tmp_path / "copy")], check=True, timeout=60)
        assert (tmp_path / "copy").read_bytes() == (tmp_path / "disk").read_bytes()
        other = subprocess.run(
            ["nbdinfo", f"{mine}?tls-certificates={tmp_path / 'two'}"], capture_output=True, check=False, timeout=60
        )
        assert other.returncode != 0, "the certificate of another view"
        assert f":{port}/" in shown and "tls-certificates=" in shown
        certificate = x509.load_pem_x509_certificate((tmp_path / "one" / "client-cert.pem").read_bytes())
        assert timedelta(hours=3) < certificate.not_valid_after_utc - datetime.now(UTC) < timedelta(hours=5)
        units = certificate.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATIONAL_UNIT_NAME)
        assert [unit.value for unit in units] == ["view-client"]
        context = ssl.create_default_context(cafile=str(site.ca_file))
        context.check_hostname = False
        context.load_cert_chain(tmp_path / "one" / "client-cert.pem", tmp_path / "one" / "client-key.pem")
        beat = urllib.request.Request(
            f"{site.url}/components/v1/heartbeat", b"{}", {"content-type": "application/json"}
        )
        with pytest.raises(urllib.error.HTTPError) as denied:
            urllib.request.urlopen(beat, context=context, timeout=30)
        assert denied.value.code in (401, 403), "it opens no other door"
    finally:
        site.sites.knob("remote port", 0)
        server.close()
        disk.close()


def test_scrub(site: SiteProcess) -> None:
    """After the story above: what the agent found becomes an event with its extent, once."""
    begun = json.loads(_failback(site, "scrub", "ledger", "--rate", "50", "--json").stdout)
    shown = _eventually(
        lambda: (
            (found := json.loads(_failback(site, "item", "show", "ledger", "--json").stdout)["properties"])
            and found["providerSpecificDetails"]["failback"]["scrub"]
        )
    )
    assert shown["scrubId"] == begun["scrubId"] and shown["repairedBytes"] == 8192
    assert "8.0 KiB were wrong and are repaired" in _failback(site, "item", "show", "ledger").stdout
    _failback(site, "scrub", "ledger")
    events = _eventually(
        lambda: len(found := [event["properties"] for event in json.loads(_failback(site, "event", "list", "--json").stdout)
                              if event["properties"]["eventCode"] in ("ECH0021", "ECH0022")]) >= 4 and found
    )  # fmt: skip
    assert [event["eventCode"] for event in events] == ["ECH0022", "ECH0021"] * 2
    assert "disk 1 was wrong at bytes 65536 to 73727" in events[1]["description"]
    assert events[1]["severity"] == "Critical"


def test_policy(site: SiteProcess) -> None:
    _failback(
        site, "policy", "set", "--crash-consistent", "1", "--history", "7d", "--thin", "10m:1m", "--thin", "2h:1h"
    )
    (policy,) = json.loads(_failback(site, "policy", "list", "--json").stdout)
    own = policy["properties"]["providerSpecificDetails"]
    assert (own["crashConsistentSeconds"], own["recoveryPointHistory"]) == (1, 7 * 1440)
    assert own["thinning"] == [
        {"olderThanInMinutes": 10, "everyInMinutes": 1},
        {"olderThanInMinutes": 120, "everyInMinutes": 60},
    ]
    assert "after 120 min one in 60 min" in _failback(site, "policy", "list").stdout
    refused = _failback(site, "policy", "set", "--thin", "2h:7m", "--thin", "3h:1h", status=2)
    assert "do not fit" in refused.stderr
    assert "0 seconds" in _failback(site, "policy", "set", "--crash-consistent", "0", status=2).stderr
    assert json.loads(_failback(site, "policy", "list", "--json").stdout) == [policy]
