"""Long-running operations through Azure's own client, signed in by a secret: the way home and back out of it, with asyncio and
without; codes of failed jobs, restart, cancel, and an operation that another process goes on waiting for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_client import SiteProcess
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.core.polling import LROPoller
from azure.mgmt.core.polling.arm_polling import ARMPolling
from azure.mgmt.recoveryservicessiterecovery import SiteRecoveryManagementClient, models
from azure_clients import GROUP, ITEM, connect, connect_async


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SiteProcess]:
    with SiteProcess(tmp_path) as running:
        running.import_ledger()
        yield running


def reprotect_input() -> models.ReverseReplicationInput:
    details = models.InMageReprotectInput(
        master_target_id="master-target-1", process_server_id="process-server-1", retention_drive="retention",
        profile_id="failback", datastore_name="store",
    )  # fmt: skip
    properties = models.ReverseReplicationInputProperties(
        failover_direction="RecoveryToPrimary", provider_specific_details=details
    )
    return models.ReverseReplicationInput(properties=properties)


def failover_input(kind: str = "LatestTime") -> models.UnplannedFailoverInput:
    properties = models.UnplannedFailoverInputProperties(
        failover_direction="PrimaryToRecovery", source_site_operations="Required",
        provider_specific_details=models.InMageUnplannedFailoverInput(recovery_point_type=kind),
    )  # fmt: skip
    return models.UnplannedFailoverInput(properties=properties)


async def test_home_back_out_of_it_and_home_for_good(site: SiteProcess) -> None:
    async with connect_async(site, "circle", "operator") as client:
        items = client.replication_protected_items

        async def done(poller: Any) -> Any:
            return await asyncio.wait_for((await poller).result(), 90)

        reversed_item = await done(items.begin_reprotect(*ITEM, reprotect_input()))
        assert reversed_item.properties.provider_specific_details.instance_type == "InMage"
        await asyncio.to_thread(site.wait_for_state, "Protected")
        points = [point async for point in client.recovery_points.list_by_replication_protected_items(*ITEM)]
        assert points
        shown = await client.recovery_points.get(*ITEM, points[0].name)
        assert shown.properties.recovery_point_time == points[0].properties.recovery_point_time

        moved = await done(items.begin_unplanned_failover(*ITEM, failover_input()))
        assert moved.properties.protection_state == "UnplannedFailoverCommitPendingStatesBegin"
        back = await done(items.begin_failover_cancel(*ITEM))
        assert back.properties.active_location == "Primary"
        await asyncio.to_thread(site.wait_for_state, "Protected")

        await done(items.begin_unplanned_failover(*ITEM, failover_input()))
        home = await done(items.begin_failover_commit(*ITEM))
        assert home.properties.protection_state == "UnplannedFailoverCommitted"
        jobs = [job async for job in client.replication_jobs.list(*GROUP)]
        assert len(jobs) > 3, "more than a page of three"
        assert {job.properties.state for job in jobs} == {"Succeeded"}
        disabling = models.DisableProtectionInput(
            properties=models.DisableProtectionInputProperties(disable_protection_reason="NotSpecified")
        )
        with pytest.raises(HttpResponseError, match="needs the role administrator"):
            await done(items.begin_delete(*ITEM, disabling))
    async with connect_async(site, "ends", "administrator") as client:
        await (await client.replication_protected_items.begin_delete(*ITEM, disabling)).result()
        with pytest.raises(ResourceNotFoundError, match="disabled"):
            await client.replication_protected_items.get(*ITEM)
    assert site.violations() == []


def test_78093_start_the_machine_restart_the_job(site: SiteProcess) -> None:
    client = connect(site, "restarts", "operator")
    site.power("cloud-vm", "Off")
    with pytest.raises(HttpResponseError) as failure:
        client.replication_protected_items.begin_reprotect(*ITEM, reprotect_input()).result()
    assert failure.value.error is not None and failure.value.error.code == "78093"
    [job] = client.replication_jobs.list(*GROUP)
    assert (job.properties.state, job.properties.allowed_actions) == ("Failed", ["Restart"])
    error = client.replication_jobs.get(*GROUP, job.name).properties.errors[0]
    assert (error.service_error_details.code, error.provider_error_details.error_code) == ("78093", 78093)
    assert "start the machine" in error.service_error_details.recommended_action
    site.power("cloud-vm", "On")
    client.replication_jobs.begin_restart(*GROUP, job.name).result()
    site.wait_for_state("Protected")
    assert client.replication_jobs.get(*GROUP, job.name).properties.state == "Succeeded"


def test_a_cancelled_job_ends_its_operation_and_can_be_restarted(site: SiteProcess) -> None:
    client = connect(site, "cancels", "operator")
    site.knob("no sync", True)
    client.replication_protected_items.begin_reprotect(*ITEM, reprotect_input()).result()
    site.wait_for_state("UnprotectedStatesBegin")
    running = None
    while running is None:
        listed = list(client.replication_jobs.list(*GROUP, filter="jobName eq 'IrCompletion'"))
        running = next((job for job in listed if job.properties.state == "InProgress"), None)
    assert running.properties.allowed_actions == ["Cancel"]
    client.replication_jobs.begin_cancel(*GROUP, running.name).result()
    status = ""
    while status not in ("Canceled", "Failed", "Succeeded"):
        path = running.id.replace("replicationJobs", "replicationOperationStatus")
        status = site.call("GET", path)[1]["status"]
    assert status == "Canceled"  # "Cancelled" would make Azure's clients poll for ever
    with pytest.raises(HttpResponseError, match="is over"):
        client.replication_jobs.begin_cancel(*GROUP, running.name).result()


def _refusals_carry_codes_and_statuses(client: SiteRecoveryManagementClient) -> None:
    items = client.replication_protected_items
    for call, status, code in (
        (lambda: items.begin_failover_commit(*ITEM).result(), 409, "OperationNotAllowed"),
        (lambda: items.begin_unplanned_failover(*ITEM, failover_input()).result(), 409, "OperationNotAllowed"),
        (lambda: client.replication_jobs.begin_restart(*GROUP, "nothing").result(), 404, "ResourceNotFound"),
    ):
        with pytest.raises(HttpResponseError) as caught:
            call()
        assert (caught.value.status_code, caught.value.error and caught.value.error.code) == (status, code)
    with pytest.raises(ResourceNotFoundError):
        client.recovery_points.get(*ITEM, "nothing")


def test_another_process_goes_on_with_a_continuation_token(site: SiteProcess) -> None:
    client = connect(site, "continues", "operator")
    _refusals_carry_codes_and_statuses(client)
    token = client.replication_protected_items.begin_reprotect(*ITEM, reprotect_input()).continuation_token()
    other = connect(site, "continues-too", "operator")
    poller: LROPoller[models.ReplicationProtectedItem] = other.replication_protected_items.begin_reprotect(
        *ITEM, reprotect_input(), continuation_token=token
    )
    assert poller.result().name == "ledger"
    jobs = [job for job in other.replication_jobs.list(*GROUP) if job.properties.scenario_name.startswith("Switch")]
    assert len(jobs) == 1, "nothing was started again"


@pytest.mark.parametrize("header", ["azure-asyncoperation", "location"])
def test_either_header_alone_leads_to_the_end(site: SiteProcess, header: str) -> None:
    """Clients of other languages follow only one of them."""

    def keep_one(response: Any) -> None:
        if response.http_request.method == "POST" and response.http_response.status_code == 202:
            for name in {"azure-asyncoperation", "location"} - {header}:
                response.http_response.headers.pop(name, None)

    client = connect(site, "follows", "operator", raw_response_hook=keep_one)
    polling = ARMPolling(0.1, raw_response_hook=keep_one)
    poller = client.replication_protected_items.begin_reprotect(
        *ITEM, reprotect_input(), polling=polling, raw_response_hook=keep_one
    )
    followed = {"azure-asyncoperation": "AzureAsyncOperationPolling", "location": "LocationPolling"}
    assert type(polling._operation).__name__ == followed[header]
    poller.result()
    assert poller.status() == "Succeeded"
