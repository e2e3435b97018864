"""The wire itself: sign-in, import and its refusals, headers of long-running operations, repeated requests, readiness."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest
from api_client import CONTAINER, ITEM, VAULT, SiteProcess

REPROTECT = {
    "properties": {
        "failoverDirection": "RecoveryToPrimary",
        "providerSpecificDetails": {
            "instanceType": "InMage", "masterTargetId": "master-target-1", "processServerId": "process-server-1",
            "retentionDrive": "retention", "profileId": "any",
        },
    }
}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteProcess]:
    with SiteProcess(tmp_path_factory.mktemp("wire")) as running:
        yield running


def test_a_call_without_token_is_told_how_to_sign_in(site: SiteProcess) -> None:
    for header in ("", "Basic YWRtaW46", "Bearer not-the-token"):
        status, body, headers = site.call("GET", ITEM, Authorization=header)
        assert status == 401
        assert headers["www-authenticate"].startswith("Bearer")
        assert body["error"]["code"] == "AuthenticationFailed"


def test_a_machine_without_origin_is_refused_with_the_reason(site: SiteProcess) -> None:
    for origin, reason in (
        (None, "none was named"),
        ({"fabric": "home", "machine": "born-in-the-cloud"}, "knows no machine"),
        ({"fabric": "cloud", "machine": "cloud-vm"}, "is a cloud"),
    ):
        status, body = site.import_ledger(onPremises=origin)
        assert (status, body["error"]["code"]) == (400, "NoOnPremisesOrigin")
        assert reason in body["error"]["message"]
        assert body["error"]["recommendedAction"]
    assert site.call("GET", ITEM)[0] == 404
    assert site.import_ledger(onPremises={"fabric": "nowhere", "machine": "x"})[0] == 404


@pytest.mark.parametrize("name", ["%E4%B8%AD", "%C2%B2", "a%0d%0ab", "..", "a.b", "-", "x" * 64])
def test_a_name_that_is_no_name_is_refused(site: SiteProcess, name: str) -> None:
    """It would have to stand in headers, which are ASCII."""
    body = {"properties": {"providerSpecificDetails": {"instanceType": "FailbackImport"}}}
    status, refused, _ = site.call("PUT", ITEM.replace("ledger", name), body)
    assert (status, refused["error"]["code"]) == (400, "InvalidName")


def test_the_callers_own_words_come_back_quoted(site: SiteProcess) -> None:
    site.import_ledger()
    site.knob("no sync", True)
    strange = ITEM.replace("/vaults/v/", "/vaults/%E4%B8%AD%0d%0aX:%20y/")
    status, _, headers = site.call("POST", f"{strange}/reProtect?api-version=%E4%B8%AD%26x", REPROTECT)
    assert status == 202
    assert "/vaults/%E4%B8%AD%0D%0AX" in headers["location"] and "api-version=%E4%B8%AD%26x" in headers["location"]
    job_id = headers["location"].split("?")[0].rsplit("/", 1)[1]
    assert site.call("POST", f"{VAULT}/replicationJobs/{job_id}/cancel")[0] in (200, 409)
    site.knob("no sync", False)


def test_import_pairs_the_disks_finds_the_agent_and_may_be_repeated(site: SiteProcess) -> None:
    first, item = site.import_ledger()
    second, again = site.import_ledger()
    assert (first, second) == (200, 200)
    details = item["properties"]["providerSpecificDetails"]
    assert details["failback"]["machineId"] == "machine-1"
    assert [disk["onPremisesPath"] for disk in details["protectedDisks"]] == ["/store/0.img", "/store/1.img"]
    assert [disk["diskId"] for disk in details["protectedDisks"]] == [
        disk["diskId"] for disk in again["properties"]["providerSpecificDetails"]["protectedDisks"]
    ]
    body = {"properties": {"providerSpecificDetails": {
        "instanceType": "FailbackImport", "onPremises": {"fabric": "home", "machine": "home-vm"},
        "cloud": {"fabric": "cloud", "machine": "cloud-vm"},
    }}}  # fmt: skip
    status, refused, _ = site.call("PUT", ITEM.replace("ledger", "second"), body)
    assert (status, refused["error"]["code"]) == (409, "MachineTaken")


@pytest.mark.parametrize("field", ["masterTargetId", "processServerId", "retentionDrive"])
def test_a_reprotect_names_the_field_that_is_missing(site: SiteProcess, field: str) -> None:
    site.import_ledger()
    details = {**REPROTECT["properties"]["providerSpecificDetails"], field: ""}  # type: ignore[dict-item]
    body = {"properties": {**REPROTECT["properties"], "providerSpecificDetails": details}}
    status, answer, _ = site.call("POST", f"{ITEM}/reProtect", body)
    assert (status, answer["error"]["code"]) == (400, "506")
    assert field in answer["error"]["message"]


def test_a_malformed_body_is_the_callers_error(site: SiteProcess) -> None:
    status, answer, _ = site.call("POST", f"{ITEM}/reProtect", {"properties": {}})
    assert (status, answer["error"]["code"]) == (400, "InvalidRequest")
    assert "providerSpecificDetails" in answer["error"]["message"]
    status, answer, _ = site.call("GET", f"{VAULT}/replicationJobs?$filter=nonsense")
    assert (status, answer["error"]["code"]) == (400, "InvalidFilter")


def test_readiness_shows_each_check_and_what_blocks(site: SiteProcess) -> None:
    site.import_ledger()
    status, good, _ = site.call("GET", f"{ITEM}/readiness?datastore=store&retentionVolume=retention")
    assert status == 200
    assert good["ready"], [check for check in good["value"] if check["verdict"] == "fail"]
    assert len(good["value"]) >= 20
    site.knob("blocked", ["127.0.0.1:9443"])
    _, blocked, _ = site.call("GET", f"{ITEM}/readiness?retentionVolume=small")
    failed = {check["name"]: check for check in blocked["value"] if check["verdict"] == "fail"}
    assert set(failed) == {"connectivity: agent to process server", "retention volume: not FAT"}
    assert failed["connectivity: agent to process server"]["code"] == "78186"
    assert "vfat" in failed["retention volume: not FAT"]["sentence"]
    site.knob("blocked", [])


def test_an_operation_is_answered_202_and_a_repeated_request_finds_its_job(site: SiteProcess) -> None:
    site.import_ledger()
    site.knob("no sync", True)
    request = {"x-ms-client-request-id": "the-same"}
    status, body, headers = site.call("POST", f"{ITEM}/reProtect", REPROTECT, **request)
    assert (status, body) == (202, None)
    job_id = headers["location"].split("?")[0].rsplit("/", 1)[1]
    assert headers["location"].startswith(f"{site.url}{ITEM}/operationresults/")
    assert headers["azure-asyncoperation"].startswith(f"{site.url}{VAULT}/replicationOperationStatus/{job_id}")
    assert headers["retry-after"].isdigit()
    assert site.call("POST", f"{ITEM}/reProtect", REPROTECT, **request)[2]["location"] == headers["location"]

    status, other, _ = site.call("POST", f"{ITEM}/reProtect", REPROTECT)
    assert (status, other["error"]["code"]) in ((409, "OperationNotAllowed"), (409, "JobInProgress"))

    result = headers["location"].removeprefix(site.url)
    seen = {site.call("GET", result)[0]}
    site.wait_for_state("UnprotectedStatesBegin")
    jobs = site.call("GET", f"{VAULT}/replicationJobs?$filter=jobName%20eq%20'IrCompletion'")
    while not jobs[1]["value"]:
        jobs = site.call("GET", f"{VAULT}/replicationJobs?$filter=jobName%20eq%20'IrCompletion'")
    seen.add(site.call("GET", result)[0])
    assert seen <= {200, 202} and 200 in seen
    finalize = jobs[1]["value"][0]["name"]
    cancelled = site.call("POST", f"{VAULT}/replicationJobs/{finalize}/cancel")
    assert cancelled[0] == 200
    document = site.call("GET", f"{VAULT}/replicationOperationStatus/{finalize}")[1]
    while document["status"] == "InProgress":
        document = site.call("GET", f"{VAULT}/replicationOperationStatus/{finalize}")[1]
    assert document["status"] == "Canceled"
    assert site.call("POST", f"{VAULT}/replicationJobs/{finalize}/cancel")[0] == 409


def test_every_change_is_in_the_audit(site: SiteProcess) -> None:
    database = sqlite3.connect(site.directory / "state" / "configuration-server.sqlite")
    actions = {row[0] for row in database.execute("SELECT action FROM audit WHERE actor = 'administrator'")}
    database.close()
    assert {"import item", "start SwitchReplicationGroupProtection", "cancel job"} <= actions


def test_another_container_is_not_found(site: SiteProcess) -> None:
    status, body, _ = site.call("GET", CONTAINER.replace("machines", "other") + "/replicationProtectedItems")
    assert (status, body["error"]["code"]) == (404, "ResourceNotFound")
    assert "machines" in body["error"]["recommendedAction"]
