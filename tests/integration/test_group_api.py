"""Replication groups through the command line: rules of membership, what is shown, and points that are shared or not."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from running_configuration_server import RunningConfigurationServer
from typer.testing import CliRunner

from failback.cli.main import app
from failback.configuration_server.database import Database
from failback.configuration_server.database.components import ComponentRow
from failback.configuration_server.database.groups import GroupPointRow
from failback.configuration_server.database.items import ItemRow
from failback.configuration_server.database.points import PointRow
from failback.configuration_server.workflows import group_marks
from failback.errors import AuthenticationError
from failback.mobility import group
from failback.model.components import Role
from failback.model.groups import HoldPhase, HoldStep
from failback.model.ids import GroupId, MarkId
from failback.runtime import records
from failback.transport.https import HttpsClient
from failback.transport.identity import Identity, enrol_if_needed

MINUTE = 60_000_000_000
NOW = time.time_ns()


def component(name: str, role: str) -> ComponentRow:
    return ComponentRow(
        component_id=name, role=role, hostname=name, hardware_id=f"hw-{name}", version="1", os_family="Linux",
        certificate_serial="1", certificate_expiry_wall_ns=NOW + 10**18, enrolled_wall_ns=NOW, last_heartbeat_wall_ns=NOW,
    )  # fmt: skip


def item(name: str, **fields: Any) -> ItemRow:
    shown = {
        "item_id": f"id-{name}", "name": name, "friendly_name": name, "machine_id": f"agent-{name}", "os_family": "Linux",
        "protection_state": "Protected", "replicating": True, "epoch": 1, "master_target_id": "mt-1",
        "cloud_hardware_id": f"hw-agent-{name}", **fields,
    }  # fmt: skip
    return ItemRow(**shown)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningConfigurationServer]:
    with RunningConfigurationServer(tmp_path_factory.mktemp("groups")) as running:
        database = Database.in_directory(running.state)
        with database.write() as session:
            for target in ("mt-1", "mt-2"):
                session.add(component(target, "master-target"))
            for name in ("ledger", "shop", "windows", "elsewhere", "home"):
                session.add(component(f"agent-{name}", "mobility"))
            session.flush()
            session.add_all(
                [
                    item("ledger"),
                    item("shop"),
                    item("windows", os_family="Windows"),
                    item("elsewhere", master_target_id="mt-2"),
                    item("home", replicating=False, protection_state="UnplannedFailoverCommitted"),
                ]
            )
        database.close()
        yield running


def failback(server: RunningConfigurationServer, *words: str, status: int = 0) -> Result:
    """The command in this process: dozens of processes would take their time to start."""
    settings = {
        "FAILBACK_SERVER": server.url,
        "FAILBACK_CA_FILE": str(server.ca_file),
        "FAILBACK_TOKEN_FILE": str(server.state / "administrator.token"),
        "HOME": str(server.directory),
    }
    done = CliRunner().invoke(app, list(words), env=settings)
    assert done.exit_code == status, f"exit status {done.exit_code}\n{done.stdout}\n{done.stderr}\n{server.log[-3000:]}"
    return done


def test_a_group_from_its_making_to_its_end(server: RunningConfigurationServer) -> None:
    refused(server)
    made = json.loads(failback(server, "group", "create", "sales", "ledger", "shop", "--every", "60", "--json").stdout)
    assert [member["name"] for member in made["properties"]["members"]] == ["ledger", "shop"]
    assert made["properties"]["crashConsistentFrequencyInSeconds"] == 60
    joins(server)
    shown = json.loads(failback(server, "item", "show", "ledger", "--json").stdout)
    details = shown["properties"]["providerSpecificDetails"]
    assert details["multiVmGroupName"] == "sales" and details["multiVmSyncStatus"] == "Enabled"
    not_ready = failback(server, "group", "point", "sales", status=4)
    assert "GroupNotReady" in not_ready.stderr and "does not take part" in not_ready.stderr
    points(server)
    failback(server, "group", "remove", "sales", "shop")
    assert "1 of at least 2 machines" in failback(server, "group", "show", "sales").stdout
    failback(server, "group", "remove", "sales", "shop", status=3)
    failback(server, "group", "remove", "sales", status=6)
    failback(server, "group", "remove", "sales", "--yes")
    assert json.loads(failback(server, "group", "list", "--json").stdout) == []
    shown = json.loads(failback(server, "item", "show", "ledger", "--json").stdout)
    assert shown["properties"]["providerSpecificDetails"]["multiVmSyncStatus"] == "Disabled"


def refused(server: RunningConfigurationServer) -> None:
    """A group that breaks a rule is not made at all."""
    for members, code in (
        (("ledger", "windows"), "GroupNeedsOneOperatingSystem"),
        (("ledger", "elsewhere"), "GroupNeedsOneMasterTarget"),
        (("ledger", "home"), "NotReplicating"),
    ):
        done = failback(server, "group", "create", "wrong", *members, status=2 if code.startswith("Group") else 4)
        assert code in done.stderr and "what to do" in done.stderr
    failback(server, "group", "create", "wrong", "ledger", "nobody", status=3)
    failback(server, "group", "create", "no/name", "ledger", status=3)
    failback(server, "group", "create", "no_name", "ledger", "shop", status=2)
    failback(server, "group", "create", "fast", "ledger", "shop", "--every", "-1", status=2)
    assert json.loads(failback(server, "group", "list", "--json").stdout) == []


def joins(server: RunningConfigurationServer) -> None:
    failback(server, "group", "add", "sales", "shop")  # a member already
    done = failback(server, "group", "create", "other", "shop", status=4)
    assert "AlreadyInGroup" in done.stderr
    assert "GroupNeedsOneMasterTarget" in failback(server, "group", "add", "sales", "elsewhere", status=2).stderr
    table = failback(server, "group", "list").stdout
    assert "sales\tledger, shop\t0" in table


def points(server: RunningConfigurationServer) -> None:
    """Marks in every state, as rounds leave them: only one that every member has published is a point."""
    database = Database.in_directory(server.state)
    with database.write() as session:
        group_id = session.get_one(ItemRow, "id-ledger").group_id
        marks = [{"item_id": f"id-{name}", "name": name, "epoch": 1, "ring": 500, "enter_milliseconds": 1.0,
                  "held_milliseconds": 7.5} for name in ("ledger", "shop")]  # fmt: skip
        for number, name in enumerate(("whole", "torn", "coming", "void")):
            state = "void" if name == "void" else "confirmed"
            session.add(
                GroupPointRow(
                    point_id=name, group_id=group_id, state=state, wall_ns=NOW + number * MINUTE, held_milliseconds=7.5,
                    marks=[{**mark, "ring": 500 + number * 100} for mark in marks], reason="too late" * (name == "void"),
                )
            )  # fmt: skip
        for name, item_id, ring in (("whole", "id-ledger", 500), ("whole", "id-shop", 500), ("torn", "id-ledger", 600),
                                    ("other", "id-shop", 650)):  # fmt: skip
            session.add(
                PointRow(item_id=item_id, point_id=name, machine_id="m", kind="GroupMark", wall_ns=NOW, epoch=1,
                         sequence=ring, ring=ring)
            )  # fmt: skip
    database.close()
    deadline = time.monotonic() + 30
    while True:
        found = json.loads(failback(server, "group", "points", "sales", "--all", "--json").stdout)
        states = {each["name"]: each["properties"]["state"] for each in found}
        if states == {"whole": "complete", "torn": "void", "coming": "confirmed", "void": "void"}:
            break
        assert time.monotonic() < deadline, states
    reasons = {each["name"]: each["properties"]["reason"] for each in found}
    assert "no recovery point was made of shop" in reasons["torn"]
    listed = failback(server, "group", "points", "sales").stdout
    assert "whole" in listed and "7.5 ms" in listed and "torn" not in listed
    shared = json.loads(failback(server, "points", "ledger", "--json").stdout)
    kinds = {each["name"]: each["properties"]["providerSpecificDetails"]["isMultiVmSyncPoint"]
             for each in shared if "providerSpecificDetails" in each.get("properties", {})}  # fmt: skip
    assert kinds == {"whole": "Yes", "torn": "No"}
    no_point = failback(server, "failback", "ledger", "--point", "group:torn", "--yes", status=2)
    assert "no point that all machines of the replication group share" in no_point.stderr
    events = json.loads(failback(server, "event", "list", "--json").stdout)
    assert any(each["properties"]["eventCode"] == group_marks.EVENT_CODE for each in events)
    failback(server, "group", "failback", "sales", "--point", "torn", "--yes", status=2)
    brought_home(server)


def brought_home(server: RunningConfigurationServer) -> None:
    """One job a member, all to the same point. There is no fabric here, so the jobs themselves fail."""
    assert "not confirmed" in failback(server, "group", "failback", "sales", status=6).stderr
    jobs = json.loads(failback(server, "group", "failback", "sales", "--yes", "--no-wait", "--json").stdout)["jobIds"]
    assert set(jobs) == {"ledger", "shop"}
    for job_id in jobs.values():
        shown = json.loads(failback(server, "job", "show", job_id, "--json").stdout)
        assert shown["properties"]["scenarioName"] == "UnplannedFailover"


async def test_only_a_member_takes_part_in_a_mark(server: RunningConfigurationServer, tmp_path: Path) -> None:
    """No certificate, another role's, one of a machine that is in no such group, and a revoked one get nothing."""
    stranger = await enrol_if_needed(tmp_path / "agent", server.control(), Role.MOBILITY)
    other_role = await enrol_if_needed(tmp_path / "server", server.control(), Role.PROCESS_SERVER)
    step = records.encode(HoldStep(HoldPhase.ARMED, GroupId(str(uuid.uuid4())), 1))

    def refused(identity: Identity | None, reason: str) -> None:
        pair = (identity.certificate_path, identity.key_path) if identity else None
        client = HttpsClient(server.url, ca_file=server.ca_file, certificate=pair)
        with pytest.raises(AuthenticationError, match=reason):
            client.post(group.PATH, step, timeout_seconds=20)
        client.close()

    refused(None, "needs a mobility service's certificate")
    refused(other_role, "needs a mobility service's certificate")
    refused(stranger, "is not in replication group")
    late = HttpsClient(server.url, ca_file=server.ca_file, certificate=(stranger.certificate_path, stranger.key_path))
    held = records.encode(HoldStep(HoldPhase.HELD, GroupId("g"), 1, MarkId("m")))
    assert late.post(group.PATH, held, timeout_seconds=20)["action"] == "release"  # of no round: let go at once
    late.close()
    database = Database.in_directory(server.state)
    with database.write() as session:
        session.get_one(ComponentRow, stranger.component_id).revoked = True
    database.close()
    refused(stranger, "no mobility service that is registered here")
