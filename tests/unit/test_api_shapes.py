"""Pure parts of the API: dates, filters, pairing of disks, choice of a point, what a reprotect has to name."""

from __future__ import annotations

from typing import Any

import pytest

from failback.configuration_server.api import inputs
from failback.configuration_server.api.arm import NEVER, filters, last_segment, timestamp
from failback.configuration_server.api.import_item import pair_disks
from failback.errors import ConfigurationError, NotSupportedError
from failback.fabric.interfaces import FabricDisk
from failback.model.points import PointChoice, PointSelector
from failback.protection.operations import Direction


def disk(index: int, serial: str = "", *, missing: bool = False) -> FabricDisk:
    return FabricDisk(index, f"vd{'abcdef'[index]}", serial, f"/{index}.img", "raw", 0 if missing else 1 << 30, missing)


def paired(home: list[FabricDisk], away: list[FabricDisk]) -> list[tuple[int, int]]:
    return [(pair.on_premises.index, pair.cloud.index) for pair in pair_disks(home, away)]


def test_disks_are_paired_by_serial_before_index() -> None:
    assert paired([disk(0, "a"), disk(1, "b")], [disk(0, "B"), disk(1, "A")]) == [(0, 1), (1, 0)]
    assert paired([disk(0), disk(1)], [disk(0), disk(1)]) == [(0, 0), (1, 1)]


def test_a_missing_file_is_still_a_counterpart() -> None:
    assert paired([disk(0, "a"), disk(1, "b", missing=True)], [disk(0, "a"), disk(1, "b")]) == [(0, 0), (1, 1)]


def test_an_extra_on_premises_disk_stays_out() -> None:
    assert paired([disk(0, "a"), disk(1, "b")], [disk(0, "a")]) == [(0, 0)]


@pytest.mark.parametrize("away", [[disk(0, "a"), disk(1, "new")], [disk(0, "a"), disk(1, "b"), disk(2)]])
def test_a_disk_from_the_cloud_alone_is_refused_by_name(away: list[FabricDisk]) -> None:
    with pytest.raises(NotSupportedError, match="has no counterpart") as failure:
        pair_disks([disk(0, "a"), disk(1, "b")], away)
    assert failure.value.code == "DiskWithoutOrigin"
    assert away[-1].target in failure.value.message


def test_dates_have_seven_digits() -> None:
    assert timestamp(1_700_000_000_123_456_789) == "2023-11-14T22:13:20.1234567Z"
    assert timestamp(0) == NEVER


def test_filters_are_read_or_refused() -> None:
    value = filters("JobStatus eq 'Failed' and startTime eq '2026-11-23T03:15:00Z'")
    assert (value("jobStatus"), value("starttime"), value("jobName")) == ("Failed", "2026-11-23T03:15:00Z", "")
    assert filters(None)("jobStatus") == ""
    with pytest.raises(ConfigurationError, match="not understood"):
        filters("jobStatus")


def test_references_may_be_names_or_ids() -> None:
    assert last_segment("/subscriptions/s/x/name/") == last_segment("name") == "name"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, PointChoice(PointSelector.LATEST)),
        ({"recoveryPointType": "LatestTime"}, PointChoice(PointSelector.LATEST)),
        ({"recoveryPointType": "LatestTag"}, PointChoice(PointSelector.LATEST_APP_CONSISTENT)),
        ({"recoveryPointType": "Custom", "recoveryPointId": "/a/b/p"}, PointChoice(PointSelector.POINT, "p")),
        (
            {"recoveryPointType": "Custom", "recoveryPointTime": "1970-01-01T00:00:01Z"},
            PointChoice(PointSelector.TIME, "1000000000"),
        ),
    ],
)
def test_the_wires_points_are_ours(body: dict[str, Any], expected: PointChoice) -> None:
    assert inputs.point_choice(inputs.FailoverDetails.model_validate(body)) == expected


@pytest.mark.parametrize("body", [{"recoveryPointType": "Custom"}, {"recoveryPointTime": "soon"}])
def test_a_custom_point_has_to_be_named(body: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        inputs.point_choice(inputs.FailoverDetails.model_validate(body))


def test_a_reprotect_fits_the_item_and_its_direction() -> None:
    def request(direction: str, instance_type: str) -> inputs.ReprotectRequest:
        details = {"instanceType": instance_type, "masterTargetId": "m", "processServerId": "p", "retentionDrive": "r"}
        properties = {"failoverDirection": direction, "providerSpecificDetails": details}
        return inputs.ReprotectRequest.model_validate({"properties": properties})

    inputs.check_reprotect(request("RecoveryToPrimary", "InMage"), Direction.TO_CLOUD)
    for direction, instance_type in (("PrimaryToRecovery", "InMage"), ("RecoveryToPrimary", "InMageAzureV2")):
        with pytest.raises(ConfigurationError):
            inputs.check_reprotect(request(direction, instance_type), Direction.TO_CLOUD)
