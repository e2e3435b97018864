"""The command line as a user runs it: a process of its own against a real server, over the whole way home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_client import SiteProcess


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteProcess]:
    with SiteProcess(tmp_path_factory.mktemp("cli")) as running:
        yield running


def failback(
    site: SiteProcess, *arguments: str, status: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    settings = {
        "FAILBACK_SERVER": site.url, "FAILBACK_CA_FILE": str(site.ca_file), "FAILBACK_TOKEN_FILE": str(site.token_file),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "failback", *arguments], capture_output=True, text=True, timeout=90, stdin=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(site.directory), **settings, **environment}, check=False,
    )  # fmt: skip
    assert done.returncode == status, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def decoded(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout)


def test_the_story(site: SiteProcess) -> None:
    imported = failback(site, "item", "import", "ledger", "--on-premises", "home-vm", "--cloud", "cloud:cloud-vm")
    assert "came from home (home-vm)" in imported.stderr
    ready = decoded(failback(site, "readiness", "ledger", "--datastore", "store", "--json"))
    assert ready["ready"]

    refused = failback(site, "reprotect", "ledger", status=6)
    assert "add --yes" in refused.stderr
    assert "overwritten" in refused.stderr
    done = failback(
        site, "reprotect", "ledger", "--process-server", "process-server-1", "--master-target", "master-target-1",
        "--retention-volume", "retention", "--datastore", "store", "--yes",
    )  # fmt: skip
    assert "Prerequisite check: Succeeded" in done.stderr
    assert "Reprotect of ledger: Succeeded" in done.stdout
    assert "Finalize protection of ledger: Succeeded" in done.stdout
    shown = decoded(failback(site, "item", "show", "ledger", "--json"))
    assert shown["properties"]["protectionState"] == "Protected"
    assert "state            Protected" in failback(site, "item", "show", "ledger").stdout

    no_point = failback(site, "failback", "ledger", "--point", "latest-app-consistent", "--yes", status=2)
    assert "no app-consistent recovery point" in no_point.stderr
    failback(site, "point", "create", "ledger")
    points = decoded(failback(site, "points", "ledger", "--json"))
    assert points[0]["properties"]["recoveryPointType"] == "ApplicationConsistent"
    assert len(failback(site, "points", "ledger").stdout.splitlines()) == len(points) + 1

    wrong = failback(site, "commit", "ledger", "--yes", status=4)
    assert "OperationNotAllowed" in wrong.stderr and "what to do" in wrong.stderr
    moved = decoded(failback(site, "failback", "ledger", "--yes", "--json"))
    assert moved["properties"]["state"] == "Succeeded"
    assert [task["name"] for task in moved["properties"]["tasks"]][-1] == "VmFoStartVmOnSecondary"
    failback(site, "cancel", "ledger", "--yes")
    site.wait_for_state("Protected")
    failback(site, "failback", "ledger", "--yes")
    assert "is no recovery point" in failback(site, "change-point", "ledger", "--point", "x", "--yes", status=2).stderr
    changed = decoded(failback(site, "change-point", "ledger", "--point", points[0]["name"], "--yes", "--json"))
    assert changed["properties"]["scenarioName"] == "ChangeRecoveryPoint"
    at = decoded(failback(site, "item", "show", "ledger", "--json"))["properties"]["failoverRecoveryPointId"]
    assert at == points[0]["name"]
    failback(site, "commit", "ledger", "--yes")
    home = decoded(failback(site, "item", "list", "--json"))[0]["properties"]
    assert home["providerSpecificDetails"]["activeSiteType"] == "OnPrem"

    jobs = decoded(failback(site, "job", "list", "--item", "ledger", "--json"))
    assert [job["properties"]["scenarioName"] for job in jobs][:2] == ["CommitFailover", "ChangeRecoveryPoint"]
    assert "Commit" in failback(site, "job", "show", jobs[0]["name"]).stdout
    assert "Succeeded" in failback(site, "job", "watch", jobs[0]["name"]).stdout
    assert "JobSucceeded" in failback(site, "event", "list", "--item", "ledger").stdout
    roles = {row["failback"]["role"] for row in decoded(failback(site, "component", "list", "--json"))}
    assert roles == {"process-server", "master-target", "mobility"}
    assert site.violations() == []


def test_a_failed_job_shows_cause_and_remedy_and_is_restarted(tmp_path: Path) -> None:
    with SiteProcess(tmp_path) as site:
        failback(site, "item", "import", "ledger", "--on-premises", "home-vm", "--cloud", "cloud-vm")
        site.power("home-vm", "On")
        site.power("cloud-vm", "Off")
        not_ready = failback(site, "readiness", "ledger", status=1)
        assert "fail\tcloud machine running" in not_ready.stdout
        assert "start the machine" in not_ready.stderr
        failed = failback(site, "reprotect", "ledger", "--yes", status=1)
        assert "error 78093" in failed.stderr and "failback job restart" in failed.stderr
        job_id = decoded(failback(site, "job", "list", "--state", "Failed", "--json"))[0]["name"]
        site.power("home-vm", "Off")
        site.power("cloud-vm", "On")
        restarted = failback(site, "job", "restart", job_id)
        assert "Reprotect of ledger: Succeeded" in restarted.stdout


def test_a_follower_outlives_a_killed_server_and_sees_the_end(tmp_path: Path) -> None:
    with SiteProcess(tmp_path) as site:
        failback(site, "item", "import", "ledger", "--on-premises", "home-vm", "--cloud", "cloud-vm")
        site.knob("no sync", True)
        follower = subprocess.Popen(
            [sys.executable, "-m", "failback", "reprotect", "ledger", "--yes"], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
            env={**os.environ, "FAILBACK_SERVER": site.url, "FAILBACK_CA_FILE": str(site.ca_file),
                 "FAILBACK_TOKEN_FILE": str(site.token_file)},
        )  # fmt: skip
        site.wait_for_state("UnprotectedStatesBegin")
        site.kill()
        site.start()
        site.knob("no sync", False)
        said, _ = follower.communicate(timeout=90)
        assert follower.returncode == 0, said
        assert "Finalize protection of ledger: Succeeded" in said
        assert site.violations() == []


def test_exit_statuses_tell_what_went_wrong(site: SiteProcess) -> None:
    assert "ResourceNotFound" in failback(site, "item", "show", "nothing", status=3).stderr
    assert "Missing argument" in failback(site, "item", "show", status=2).stderr
    missing = failback(site, "item", "list", status=2, FAILBACK_SERVER="")
    assert "FAILBACK_SERVER" in missing.stderr
    away = failback(site, "item", "list", status=5, FAILBACK_SERVER="https://127.0.0.1:1")
    assert "does not answer" in away.stderr
    stranger = site.directory / "stranger.token"
    stranger.write_text("not-the-token")
    assert "not known" in failback(site, "item", "list", status=5, FAILBACK_TOKEN_FILE=str(stranger)).stderr


def test_settings_may_stand_in_a_file(site: SiteProcess) -> None:
    directory = site.directory / ".config" / "failback"
    directory.mkdir(parents=True)
    (directory / "cli.toml").write_text(
        f'server = "{site.url}"\nca_file = "{site.ca_file}"\ntoken_file = "{site.token_file}"\n'
    )
    empty = {"FAILBACK_SERVER": "", "FAILBACK_CA_FILE": "", "FAILBACK_TOKEN_FILE": "", "XDG_CONFIG_HOME": ""}
    failback(site, "component", "list", **empty)
    (directory / "cli.toml").write_text('serwer = "x"\n')
    assert "unknown key 'serwer'" in failback(site, "component", "list", status=2, **empty).stderr
