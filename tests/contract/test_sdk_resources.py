"""Azure's own client walks everything that a vault has around its items, page by page, synchronously and with asyncio."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from datetime import datetime

import pytest
from api_client import VAULT, SiteProcess
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.mgmt.recoveryservicessiterecovery import SiteRecoveryManagementClient, models
from azure_clients import CONTAINER, GROUP, ITEM, connect, connect_async, credential, register, send

from failback.configuration_server.api.unavailable import EMPTY, REFUSED
from failback.protection.readiness.support_matrix import SUPPORTED

FABRIC = CONTAINER[:3]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteProcess]:
    """A list's page has three rows here."""
    with SiteProcess(tmp_path_factory.mktemp("azure")) as running:
        running.import_ledger()
        yield running


@pytest.fixture(scope="module")
def client(site: SiteProcess) -> SiteRecoveryManagementClient:
    return connect(site, "walks")


def test_the_fabrics_and_what_stands_in_them(client: SiteRecoveryManagementClient, site: SiteProcess) -> None:
    fabrics = {fabric.name: fabric.properties for fabric in client.replication_fabrics.list(*GROUP)}
    assert set(fabrics) == {"configuration-server", "cloud", "home"}
    assert {fabric.health for fabric in fabrics.values()} == {"Normal"}
    consistent = client.replication_fabrics.begin_check_consistency(*FABRIC).result()
    assert [server.friendly_name for server in consistent.properties.custom_details.process_servers] == [
        "process-server-1"
    ]
    vcenters = list(client.replicationv_centers.list(*GROUP))
    assert [(one.name, one.properties.discovery_status) for one in vcenters] == [("home", "Completed")]
    assert client.replicationv_centers.get(*FABRIC, "home").properties.infrastructure_id == "home"
    assert [one.name for one in client.replicationv_centers.list_by_replication_fabrics(*FABRIC)] == ["home"]
    containers = list(client.replication_protection_containers.list(*GROUP))
    assert [(one.name, one.properties.protected_item_count) for one in containers] == [("machines", 1)]
    [mapping] = client.replication_protection_container_mappings.list_by_replication_protection_containers(*CONTAINER)
    assert (mapping.properties.policy_friendly_name, mapping.properties.state) == ("failback", "Paired")
    assert client.replication_protection_container_mappings.get(*CONTAINER, "failback").id == mapping.id


def test_a_provider_is_refreshed_on_demand(client: SiteRecoveryManagementClient, site: SiteProcess) -> None:
    [provider] = client.replication_recovery_services_providers.list(*GROUP)
    assert provider.properties.connection_status == "Connected"
    before = time.time()
    refreshed = client.replication_recovery_services_providers.begin_refresh_provider(*FABRIC, provider.name).result()
    assert refreshed.id == provider.id
    fabric = client.replication_fabrics.get(*FABRIC).properties.custom_details
    assert fabric.process_servers[0].last_heartbeat.timestamp() >= before - 1
    path = refreshed.id.replace(refreshed.id.split("/providers/Microsoft")[0], "/subscriptions/s/resourceGroups/g")
    answer = send(site, "POST", f"{path}/refreshProvider")["properties"]["failback"]
    assert {"process-server-1", "master-target-1"} <= set(answer["answered"])


def test_machines_that_could_be_protected(client: SiteRecoveryManagementClient) -> None:
    offered = list(client.replication_protectable_items.list_by_replication_protection_containers(*CONTAINER))
    assert {machine.properties.friendly_name for machine in offered} == {"cloud-vm", "home-vm"}
    for machine in offered:
        shown = client.replication_protectable_items.get(*CONTAINER, machine.name)
        assert (shown.id, shown.properties.protection_status) == (machine.id, "Protected")
        assert shown.properties.custom_details.disk_details[0].disk_type == "OperatingSystem"
    for strange in ("home.nothing", "nowhere.x", "x"):
        with pytest.raises(ResourceNotFoundError):
            client.replication_protectable_items.get(*CONTAINER, strange)


def test_the_vaults_health_counts_what_there_is(client: SiteRecoveryManagementClient) -> None:
    health = client.replication_vault_health.get(*GROUP).properties
    assert health.protected_items_health.resource_count == 1
    assert sum(health.protected_items_health.categorized_resource_counts.values()) == 1
    assert health.fabrics_health.resource_count == 3
    again = client.replication_vault_health.begin_refresh(*GROUP).result()
    assert again.properties.containers_health.categorized_resource_counts == {"Normal": 1}


def test_lists_go_on_with_the_next_link(client: SiteRecoveryManagementClient, site: SiteProcess) -> None:
    for number in range(8):
        body = {"properties": {"members": [], "crashConsistentFrequencyInSeconds": 60}}
        send(site, "PUT", f"{VAULT}/failback/clients/page-{number}", {"properties": {"role": "reader"}}) and body
    pages = [list(page) for page in client.replication_events.list(*GROUP).by_page()]
    assert all(len(page) <= 3 for page in pages) and pages[0]
    ids = [event.name for page in pages for event in page]
    assert len(ids) == len(set(ids)) and ids == sorted(ids, key=int, reverse=True)
    page = send(site, "GET", f"{VAULT}/failback/audit?$filter=action%20eq%20'create%20client'&api-version=2018-01-10")
    seen = [row["properties"]["target"] for row in page["value"]]
    assert len(seen) == 3 and "api-version=2018-01-10" in page["nextLink"] and "filter" in page["nextLink"]
    while page["nextLink"]:
        page = send(site, "GET", page["nextLink"].removeprefix(site.url))
        seen += [row["properties"]["target"] for row in page["value"]]
    assert {f"page-{number}" for number in range(8)} <= set(seen) and len(seen) == len(set(seen))


@pytest.mark.parametrize("token", ["x", "bnVsbA==", "WzFd", "W1tdXQ==", "WyJhIiwiYiJd", "%00", "WzFlOTk5LCAiYSJd"])
def test_a_token_of_another_list_is_refused(site: SiteProcess, token: str) -> None:
    status, answer, _ = site.call("GET", f"{VAULT}/replicationJobs?$skipToken={token}")
    assert (status, answer["error"]["code"]) == (400, "InvalidSkipToken")


def test_jobs_are_filtered_and_exported(client: SiteRecoveryManagementClient, site: SiteProcess) -> None:
    query = models.JobQueryParameter(
        job_name="UnplannedFailover", start_time="2020-01-01T00:00:00Z", job_output_type="Json"
    )
    job = client.replication_jobs.begin_export(*GROUP, query).result()
    assert job.properties.state == "Succeeded"
    link = job.properties.custom_details.blob_uri
    assert link.startswith(site.url)
    assert send(site, "GET", link.removeprefix(site.url)) == {"value": [], "nextLink": None}
    with pytest.raises(HttpResponseError, match="not exported as Excel"):
        client.replication_jobs.begin_export(*GROUP, models.JobQueryParameter(job_output_type="Excel")).result()
    with pytest.raises(HttpResponseError, match="not a time"):
        client.replication_jobs.begin_export(*GROUP, models.JobQueryParameter(start_time="yesterday")).result()


def test_dates_are_dates_and_any_version_is_served(client: SiteRecoveryManagementClient, site: SiteProcess) -> None:
    event = next(iter(client.replication_events.list(*GROUP)))
    assert isinstance(event.properties.time_of_occurrence, datetime)
    for version in ("2016-08-10", "2018-07-10", "2026-02-01", "nonsense", ""):
        listed = send(site, "GET", f"{VAULT}/replicationProtectedItems?api-version={version}")
        assert [item["name"] for item in listed["value"]] == ["ledger"]


def test_supported_systems_are_those_that_are_tried(client: SiteRecoveryManagementClient) -> None:
    for provider, expected in (("InMage", ["InMage"]), (None, ["InMageAzureV2", "InMage"]), ("A2A", [])):
        listed = client.supported_operating_systems.get(*GROUP, instance_type=provider).properties.supported_os_list
        assert [one.instance_type for one in listed] == expected
        for one in listed:
            assert {
                (system.os_name, version.version) for system in one.supported_os for version in system.os_versions
            } == {(system.name, system.version) for system in SUPPORTED}


def test_words_of_a_path_are_known_in_any_case(site: SiteProcess) -> None:
    """As PowerShell writes them."""
    strange = f"{VAULT}/replicationProtectedItems".replace("/subscriptions/", "/Subscriptions/").replace(
        "Groups", "groups"
    )
    assert site.call("GET", strange)[1]["value"][0]["name"] == "ledger"
    assert site.call("GET", strange.lower())[0] == 200
    assert site.call("POST", f"{VAULT}/REPLICATIONJOBS/nothing/CANCEL")[1]["error"]["code"] == "ResourceNotFound"
    reader = credential(site, *register(site, "case", "reader")).get_token("https://failback/.default").token
    status, _, _ = site.call("GET", f"{VAULT}/FAILBACK/CLIENTS", Authorization=f"Bearer {reader}")
    assert status == 403, "a role is asked of the path that is served"


def test_operations_are_named_with_the_role_that_they_need(client: SiteRecoveryManagementClient) -> None:
    told = {one.name: one.display.description for one in client.operations.list(GROUP[0])}
    vault, item = (
        "Microsoft.RecoveryServices/vaults",
        "replicationFabrics/replicationProtectionContainers/replicationProtectedItems",
    )
    assert told[f"{vault}/replicationJobs/read"] == "needs the role reader"
    assert told[f"{vault}/{item}/unplannedFailover/action"] == "needs the role operator"
    assert told[f"{vault}/{item}/remove/action"] == "needs the role administrator"
    assert f"{vault}/{item}/testFailover/action" not in told, "it is not served yet"


def test_what_there_is_none_of_is_an_empty_list(client: SiteRecoveryManagementClient) -> None:
    for collection in (
        client.replication_recovery_plans.list(*GROUP), client.replication_networks.list(*GROUP),
        client.replication_network_mappings.list(*GROUP), client.replication_storage_classifications.list(*GROUP),
        client.replication_storage_classification_mappings.list(*GROUP), client.replication_migration_items.list(*GROUP),
        client.replication_protection_clusters.list(*GROUP), client.replication_protection_intents.list(*GROUP),
        client.replication_appliances.list(*GROUP), client.replication_vault_setting.list(*GROUP),
        client.replication_logical_networks.list_by_replication_fabrics(*FABRIC),
    ):  # fmt: skip
        assert list(collection) == []
    with pytest.raises(ResourceNotFoundError, match="there are no recovery plans yet"):
        client.replication_recovery_plans.get(*GROUP, "nightly")
    [setting] = client.replication_alert_settings.list(*GROUP)
    assert (setting.properties.send_to_owners, setting.properties.custom_email_addresses) == ("DoNotSend", [])


def test_what_cannot_be_done_says_why_and_what_to_do(client: SiteRecoveryManagementClient) -> None:
    items, fabrics = client.replication_protected_items, client.replication_fabrics
    asked = models.TestFailoverCleanupInput(properties=models.TestFailoverCleanupInputProperties(comments="over"))
    for call in (
        lambda: items.begin_purge(*ITEM).result(),
        lambda: items.begin_test_failover_cleanup(*ITEM, asked).result(),
        lambda: fabrics.begin_create(*GROUP, "other", models.FabricCreationInput()).result(),
        lambda: fabrics.begin_remove_infra(*FABRIC).result(),
        lambda: client.replication_policies.begin_delete(*GROUP, "failback").result(),
        lambda: client.replication_recovery_plans.begin_reprotect(*GROUP, "nightly").result(),
        lambda: client.replicationv_centers.begin_delete(*FABRIC, "home").result(),
        lambda: client.replication_alert_settings.create(
            *GROUP, "defaultAlertSetting", models.ConfigureAlertRequest(properties={"sendToOwners": "Send"})
        ),
    ):
        with pytest.raises(HttpResponseError) as caught:
            call()
        assert (caught.value.status_code, caught.value.error and caught.value.error.code) == (
            400,
            "OperationNotSupported",
        )
        assert "RecommendedAction" in str(caught.value)
    assert client.replication_protected_items.get(*ITEM).name == "ledger"


async def test_the_asyncio_client_reads_and_waits_the_same(site: SiteProcess) -> None:
    async with connect_async(site, "walks-async") as client:
        names = [item.name async for item in client.replication_protected_items.list(*GROUP)]
        assert names == ["ledger"]
        events = [event.name async for event in client.replication_events.list(*GROUP)]
        assert len(events) == len(set(events))
        poller = await client.replication_vault_health.begin_refresh(*GROUP)
        assert (await asyncio.wait_for(poller.result(), 60)).name == "default"
        with pytest.raises(ResourceNotFoundError):
            await client.replication_protected_items.get(*CONTAINER, "nothing")


def test_every_refusal_is_a_well_formed_answer(site: SiteProcess) -> None:
    for method, path in REFUSED:
        filled = (
            path.replace("{fabric}", "configuration-server")
            .replace("{container}", "machines")
            .replace("{name}", "machines")
        )
        status, answer, _ = site.call(
            method, VAULT + filled.replace("{item}", "ledger").replace("{", "").replace("}", ""), {}
        )
        assert (status, answer["error"]["code"]) == (400, "OperationNotSupported"), path
        assert answer["error"]["recommendedAction"], path
    for path in EMPTY:
        plain = path.replace("{", "").replace("}", "")
        assert site.call("GET", VAULT + plain)[:2] == (200, {"value": [], "nextLink": None}), path
    json.dumps(list(EMPTY))
