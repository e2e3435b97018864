"""Words of a path are found in any case, and names are left alone even when they look like words."""

from __future__ import annotations

import pytest

from failback.configuration_server.api.letter_case import as_served, words_of

HEAD = (
    "/subscriptions/{subscription}/resourceGroups/{resource_group}/providers/Microsoft.RecoveryServices/vaults/{vault}"
)
WORDS = words_of(
    [
        f"{HEAD}/replicationFabrics/{{fabric}}/replicationProtectionContainers/{{container}}/replicationProtectedItems/{{item}}/reProtect",
        f"{HEAD}/replicationJobs/{{job_id}}/cancel", f"{HEAD}/failback/clients/{{name}}", "/healthz",
    ]
)  # fmt: skip
S, JOBS = "/subscriptions/S/resourceGroups/G/providers/Microsoft.RecoveryServices/vaults/V", "/replicationJobs"
LOUD = "/Subscriptions/S/resourcegroups/G/Providers/microsoft.recoveryservices/Vaults/V"
OTHER = S.replace("Microsoft.RecoveryServices", "Other")


@pytest.mark.parametrize(
    ("sent", "served"),
    [
        (f"{LOUD}{JOBS.lower()}/J/CANCEL", f"{S}{JOBS}/J/cancel"),
        (
            f"{S}/REPLICATIONFABRICS/Cancel/replicationprotectioncontainers/ReProtect",
            f"{S}/replicationFabrics/Cancel/replicationProtectionContainers/ReProtect",
        ),
        (f"{S}/failback/Clients/CLIENTS", f"{S}/failback/clients/CLIENTS"),
        (f"{S}/unknownWord/x", f"{S}/unknownWord/x"),
        ("/HEALTHZ", "/HEALTHZ"),
        (f"{OTHER}/REPLICATIONJOBS", f"{OTHER}/REPLICATIONJOBS"),
        ("", ""),
        ("/", "/"),
    ],
)
def test_words_and_names(sent: str, served: str) -> None:
    assert as_served(sent, WORDS) == served
    assert as_served(served, WORDS) == served
