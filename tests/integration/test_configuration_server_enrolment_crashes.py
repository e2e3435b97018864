"""kill -9 during the first start, an enrolment and a heartbeat: started again, everything is as if nothing had been."""

import signal
from pathlib import Path
from typing import Any

import pytest
from running_configuration_server import RunningConfigurationServer

from failback.configuration_server.database import Database, components
from failback.configuration_server.database.orders import OrderRow
from failback.errors import PeerError
from failback.model import orders as kinds
from failback.model.components import Enrolment, Heartbeat, OrderReport, OrderState, ProcessServerStatus, Role
from failback.model.ids import OrderId
from failback.runtime import records
from failback.transport import identity
from failback.transport.https import HttpsClient

PLACES = (
    "migration.applied",
    "authority.key_written",
    "bootstrap.files_written",
    "bootstrap.stored",
    "server_certificate.key_written",
)


def _post(
    server: RunningConfigurationServer, path: str, body: Any, certificate: tuple[Path, Path] | None = None
) -> Any:
    client = HttpsClient(server.url, ca_file=server.ca_file, certificate=certificate)
    try:
        return client.post(path, body, timeout_seconds=20)
    finally:
        client.close()


def test_a_first_start_killed_anywhere_is_finished_by_the_next(tmp_path: Path) -> None:
    with RunningConfigurationServer(tmp_path, starts=False) as server:
        secrets: list[str] = []
        for place in PLACES:
            server.launch(f"{place}=kill")
            assert server.wait() == -signal.SIGKILL, (place, server.log)
            if place not in ("migration.applied", "authority.key_written"):
                secrets.append((server.state / "enrolment-passphrase").read_text())
        server.start()
        assert {(server.state / "enrolment-passphrase").read_text()} == set(secrets), "one passphrase for good"
        database = Database.in_directory(server.state)
        with database.read() as session:
            assert len(components.all_components(session, Role.CONFIGURATION_SERVER)) == 1
        database.close()


def test_a_killed_enrolment_and_a_killed_heartbeat_are_repeated_without_harm(tmp_path: Path) -> None:
    key_pem, csr_pem = identity.key_and_request(Role.PROCESS_SERVER)
    with RunningConfigurationServer(tmp_path) as server:
        server.start_again_with("enrolment.stored=kill")
        passphrase = (server.state / "enrolment-passphrase").read_text().strip()
        request = records.encode(Enrolment(Role.PROCESS_SERVER, "ps", csr_pem, "hw", "1", passphrase=passphrase))
        with pytest.raises(PeerError):
            _post(server, "/components/v1/enrol", request)
        assert server.wait() == -signal.SIGKILL
        server.start("heartbeat.stored=kill@2")
        enrolled = _post(server, "/components/v1/enrol", request)
        database = Database.in_directory(server.state)
        with database.write() as session:
            [row] = components.all_components(session, Role.PROCESS_SERVER)
            assert row.component_id == enrolled["component_id"], "the first attempt's component was found again"
            session.add(
                OrderRow(
                    order_id="o1", key="k", component_id=row.component_id, kind=kinds.PROBE, arguments={}, result={}
                )
            )
        files = (tmp_path / "certificate.pem", tmp_path / "key.pem")
        files[0].write_text(enrolled["certificate_pem"])
        files[1].write_bytes(key_pem)

        def beat(*reports: OrderReport) -> Any:
            status = records.encode(ProcessServerStatus(listen_port=1))
            said = Heartbeat(Role.PROCESS_SERVER, "ps", "1", "hw", "b", "", "", "", 0, 0.0, (), status, tuple(reports))
            return _post(server, "/components/v1/heartbeat", records.encode(said), files)

        assert [order["order_id"] for order in beat()["orders"]] == ["o1"]
        done = OrderReport(OrderId("o1"), OrderState.SUCCEEDED, {"failures": {}})
        with pytest.raises(PeerError):
            beat(done)  # it was stored; the answer never came
        assert server.wait() == -signal.SIGKILL
        server.start()
        assert beat(done)["orders"] == []
        with database.read() as session:
            order = session.get(OrderRow, "o1")
        assert order is not None and order.state == "succeeded" and order.result == {"failures": {}}
        database.close()
