"""Azure's own client drives the server unchanged: reprotect, points, failover, commit, jobs, errors; over TLS."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from api_client import SiteProcess
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
from azure.mgmt.recoveryservicessiterecovery import SiteRecoveryManagementClient, models

VAULT = ("any-group", "any-vault")
CONTAINER = (*VAULT, "configuration-server", "machines")
ITEM = (*CONTAINER, "ledger")


class Token:
    def __init__(self, token: str) -> None:
        self._token = token

    def get_token(self, *_scopes: str, **_options: Any) -> AccessToken:
        return AccessToken(self._token, int(time.time()) + 3600)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteProcess]:
    with SiteProcess(tmp_path_factory.mktemp("azure")) as running:
        running.import_ledger()
        yield running


@pytest.fixture(scope="module")
def client(site: SiteProcess) -> SiteRecoveryManagementClient:
    return connect(site, site.token)


def connect(site: SiteProcess, token: str) -> SiteRecoveryManagementClient:
    return SiteRecoveryManagementClient(
        Token(token), "11111111-2222-3333-4444-555555555555", base_url=site.url, connection_verify=str(site.ca_file),
        credential_scopes=["https://failback/.default"], polling_interval=0.2,
    )  # fmt: skip


def reprotect_input(**changes: Any) -> models.ReverseReplicationInput:
    details = {
        "master_target_id": "master-target-1", "process_server_id": "process-server-1", "retention_drive": "retention",
        "profile_id": "policy", "datastore_name": "store",
    }  # fmt: skip
    inmage = models.InMageReprotectInput(**{**details, **changes})
    properties = models.ReverseReplicationInputProperties(
        failover_direction="RecoveryToPrimary", provider_specific_details=inmage
    )
    return models.ReverseReplicationInput(properties=properties)


def failover_input(kind: str, point_id: str | None = None) -> models.UnplannedFailoverInput:
    inmage = models.InMageUnplannedFailoverInput(recovery_point_type=kind, recovery_point_id=point_id)
    properties = models.UnplannedFailoverInputProperties(
        failover_direction="PrimaryToRecovery", source_site_operations="Required", provider_specific_details=inmage
    )
    return models.UnplannedFailoverInput(properties=properties)


def other_point(point_id: str | None) -> models.ApplyRecoveryPointInput:
    details = models.InMageAzureV2ApplyRecoveryPointInput()
    properties = models.ApplyRecoveryPointInputProperties(recovery_point_id=point_id, provider_specific_details=details)
    return models.ApplyRecoveryPointInput(properties=properties)


def test_the_whole_way_home(client: SiteRecoveryManagementClient, site: SiteProcess) -> None:
    items = client.replication_protected_items
    before = items.get(*ITEM)
    assert before.id.startswith("/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/any-group/")
    assert before.properties.protection_state == "UnplannedFailoverCommitted"
    assert before.properties.allowed_operations == ["SwitchProtection", "DisableProtection"]
    assert before.properties.provider_specific_details.instance_type == "InMageAzureV2"

    with pytest.raises(HttpResponseError, match="masterTargetId is required"):
        items.begin_reprotect(*ITEM, reprotect_input(master_target_id="")).result()
    with pytest.raises(ResourceNotFoundError, match="elsewhere"):
        items.begin_reprotect(*ITEM, reprotect_input(process_server_id="elsewhere")).result()

    after = items.begin_reprotect(*ITEM, reprotect_input()).result()
    assert after.name == "ledger"
    assert after.properties.provider_specific_details.instance_type == "InMage"
    site.wait_for_state("Protected")
    jobs = list(client.replication_jobs.list(*VAULT, filter="itemName eq 'ledger'"))
    assert [job.properties.scenario_name for job in jobs] == ["IrCompletion", "SwitchReplicationGroupProtection"]
    assert all(job.properties.state == "Succeeded" and job.properties.tasks == [] for job in jobs)
    shown = client.replication_jobs.get(*VAULT, jobs[1].name)
    names = [task.name for task in shown.properties.tasks]
    assert names == [
        "SwitchReplicationGroupProtectionPreflightTask", "VmCommitFailover", "DiscoverReplicaTask",
        "GetSwitchProtectionRequirementsTask", "ProtectReplicaTask",
    ]  # fmt: skip
    assert shown.properties.custom_details.instance_type == "SwitchProtectionJobDetails"
    children = shown.properties.tasks[4].group_task_custom_details.child_tasks
    assert children[-1].custom_details.job_task.job_scenario_name == "EnableDr"

    protected = items.get(*ITEM).properties
    assert (protected.protection_state, protected.active_location) == ("Protected", "Primary")
    disks = protected.provider_specific_details.protected_disks
    assert [disk.resync_progress_percentage for disk in disks] == [100, 100]
    points = list(client.recovery_points.list_by_replication_protected_items(*ITEM))
    assert {point.properties.recovery_point_type for point in points} == {"CrashConsistent", "BeforeReprotect"}

    with pytest.raises(ResourceNotFoundError, match="no reachable recovery point"):
        items.begin_unplanned_failover(*ITEM, failover_input("Custom", "nowhere")).result()
    with pytest.raises(HttpResponseError, match="not possible now"):
        items.begin_failover_commit(*ITEM).result()
    moved = items.begin_unplanned_failover(*ITEM, failover_input("LatestTime")).result()
    assert moved.properties.protection_state == "UnplannedFailoverCommitPendingStatesBegin"
    assert moved.properties.provider_specific_details.active_site_type == "OnPrem"
    assert moved.properties.allowed_operations == ["Commit", "ChangePit", "CancelFailover"]
    with pytest.raises(HttpResponseError, match="recoveryPointId is required"):
        items.begin_apply_recovery_point(*ITEM, other_point(None)).result()
    with pytest.raises(ResourceNotFoundError, match="no reachable recovery point"):
        items.begin_apply_recovery_point(*ITEM, other_point("nowhere")).result()
    changed = items.begin_apply_recovery_point(*ITEM, other_point("before")).result()
    assert changed.properties.protection_state == "UnplannedFailoverCommitPendingStatesBegin"
    assert changed.properties.failover_recovery_point_id == "before"
    done = items.begin_failover_commit(*ITEM).result()
    assert done.properties.protection_state == "UnplannedFailoverCommitted"
    assert done.properties.active_location == "Recovery"
    assert site.violations() == []


def test_servers_volumes_and_stores_are_offered(client: SiteRecoveryManagementClient) -> None:
    fabric = client.replication_fabrics.get(*CONTAINER[:3]).properties.custom_details
    assert [server.friendly_name for server in fabric.process_servers] == ["process-server-1"]
    target = fabric.master_target_servers[0]
    assert [volume.volume_name for volume in target.retention_volumes] == ["retention"]
    assert [store.symbolic_name for store in target.data_stores] == ["store"]
    policy = client.replication_policies.get(*VAULT, "failback").properties.provider_specific_details
    figures = (
        policy.recovery_point_threshold_in_minutes, policy.recovery_point_history, policy.app_consistent_frequency_in_minutes
    )  # fmt: skip
    assert figures == (15, 1440, 60)
    offered = client.replication_protectable_items.list_by_replication_protection_containers(*CONTAINER)
    assert {machine.properties.friendly_name for machine in offered} == {"cloud-vm", "home-vm"}
    assert any(event.properties.event_code == "ItemImported" for event in client.replication_events.list(*VAULT))


def test_what_is_not_there_is_not_found(client: SiteRecoveryManagementClient) -> None:
    for missing in ((*CONTAINER, "nothing"), (*VAULT, "elsewhere", "machines", "ledger")):
        with pytest.raises(ResourceNotFoundError):
            client.replication_protected_items.get(*missing)
    with pytest.raises(ResourceNotFoundError):
        client.replication_jobs.get(*VAULT, "nothing")


@pytest.mark.parametrize("token", ["wrong", ""])
def test_without_a_known_token_nothing_is_answered(site: SiteProcess, token: str) -> None:
    with pytest.raises(ClientAuthenticationError):
        connect(site, token).replication_protected_items.get(*ITEM)
