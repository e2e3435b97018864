"""Bodies of the operations on an item, parsed at the border (asr.md section 12.4), and what they mean to us."""

from __future__ import annotations

from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field

from failback.errors import ConfigurationError
from failback.model.bandwidth import BandwidthLimit
from failback.model.points import PointChoice, PointSelector
from failback.protection.bandwidth_rules import parse_rate, parse_schedule
from failback.protection.operations import Direction
from failback.runtime.clock import from_iso


class _Wire(BaseModel):
    """Unknown fields are left alone: Azure's clients send more than a self-hosted server needs."""

    model_config = ConfigDict(populate_by_name=True, extra="ignore")


class ReprotectDetails(_Wire):
    """``InMageReprotectInput``. Servers may be named by host name or id, the policy is always the failback policy."""

    instance_type: str = Field(alias="instanceType")
    master_target_id: str = Field(default="", alias="masterTargetId")
    process_server_id: str = Field(default="", alias="processServerId")
    retention_drive: str = Field(default="", alias="retentionDrive")
    datastore_name: str = Field(default="", alias="datastoreName")
    comparison_minutes: int = Field(default=0, alias="comparisonMinutes", ge=0, le=10_080)
    """Our extension: above 0, periodic comparison instead of capture."""


class ReprotectProperties(_Wire):
    failover_direction: str = Field(default="RecoveryToPrimary", alias="failoverDirection")
    details: ReprotectDetails = Field(alias="providerSpecificDetails")


class ReprotectRequest(_Wire):
    properties: ReprotectProperties


class FailoverDetails(_Wire):
    """``InMageUnplannedFailoverInput``; ``recoveryPointTime`` is our extension to ``Custom``."""

    instance_type: str = Field(default="InMage", alias="instanceType")
    recovery_point_type: Literal["LatestTime", "LatestTag", "Custom"] | None = Field(
        default=None, alias="recoveryPointType"
    )
    recovery_point_id: str | None = Field(default=None, alias="recoveryPointId")
    recovery_point_time: str | None = Field(default=None, alias="recoveryPointTime")


class FailoverProperties(_Wire):
    failover_direction: str = Field(default="PrimaryToRecovery", alias="failoverDirection")
    source_site_operations: str = Field(default="Required", alias="sourceSiteOperations")
    details: FailoverDetails = Field(default_factory=FailoverDetails, alias="providerSpecificDetails")


class FailoverRequest(_Wire):
    properties: FailoverProperties = Field(default_factory=FailoverProperties)


class ApplyPointProperties(_Wire):
    """``ApplyRecoveryPointInputProperties``; a type or a time in the details, as a failover has them, is our extension."""

    recovery_point_id: str | None = Field(default=None, alias="recoveryPointId")
    details: FailoverDetails = Field(default_factory=FailoverDetails, alias="providerSpecificDetails")


class ApplyPointRequest(_Wire):
    properties: ApplyPointProperties


class RepairDetails(_Wire):
    """Our extension: Azure's operation has no body. A process server may be named by host name or id."""

    process_server_id: str = Field(default="", alias="processServerId")
    comparison_minutes: int | None = Field(default=None, alias="comparisonMinutes", ge=0, le=10_080)
    """Periodic comparison from now on; 0: capture. Not given: as before."""


class RepairProperties(_Wire):
    details: RepairDetails = Field(default_factory=RepairDetails, alias="providerSpecificDetails")


class RepairRequest(_Wire):
    properties: RepairProperties = Field(default_factory=RepairProperties)


class BandwidthSettings(_Wire):
    """What is left out stays as it is. Words as :mod:`failback.protection.bandwidth_rules` reads them.

    An item's ``limit`` may be ``policy``: then it has none of its own any more.
    """

    limit: str | None = None
    schedule: list[str] | None = None
    time_zone: str | None = Field(default=None, alias="timeZone")


class SettingsDetails(_Wire):
    instance_type: Literal["FailbackSettings"] = Field(alias="instanceType")
    bandwidth: BandwidthSettings = Field(default_factory=BandwidthSettings)


class SettingsProperties(_Wire):
    details: SettingsDetails = Field(alias="providerSpecificDetails")


class SettingsRequest(_Wire):
    """Our PATCH of an item."""

    properties: SettingsProperties


OF_POLICY = "policy"


def changed_bandwidth(before: BandwidthLimit, asked: BandwidthSettings) -> BandwidthLimit:
    """Raises ConfigurationError."""
    zone = before.time_zone if asked.time_zone is None else asked.time_zone
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigurationError(
            f"there is no time zone {zone!r}", code="InvalidBandwidth", remedy="use an IANA name such as Europe/Berlin"
        ) from None
    return BandwidthLimit(
        before.bytes_per_second if asked.limit is None else parse_rate(asked.limit),
        before.windows if asked.schedule is None else parse_schedule(asked.schedule),
        zone,
    )


class DisableProperties(_Wire):
    disable_protection_reason: str = Field(default="NotSpecified", alias="disableProtectionReason")


class DisableRequest(_Wire):
    properties: DisableProperties = Field(default_factory=DisableProperties)


def check_reprotect(request: ReprotectRequest, direction: Direction) -> None:
    """What the wire's model requires of a reprotect to on premises. Raises ConfigurationError naming the field."""
    details = request.properties.details
    if request.properties.failover_direction != "RecoveryToPrimary":
        raise ConfigurationError(
            "failoverDirection has to be RecoveryToPrimary: a reprotect turns the direction",
            code="506",
            remedy='send "failoverDirection": "RecoveryToPrimary"',
        )
    wanted = direction.reversed.provider
    if details.instance_type != wanted:
        raise ConfigurationError(
            f"instanceType {details.instance_type!r} does not fit this item: {wanted} is expected",
            code="506",
            remedy=f'send "instanceType": "{wanted}"',
        )
    for name, value in (
        ("masterTargetId", details.master_target_id),
        ("processServerId", details.process_server_id),
        ("retentionDrive", details.retention_drive),
    ):
        if not value:
            raise ConfigurationError(
                f"{name} is required", code="506", remedy="see replicationFabrics for what there is to choose from"
            )


def point_choice(details: FailoverDetails) -> PointChoice:
    """The recovery point that a failover asks for. Raises ConfigurationError (Custom without a point, no time)."""
    if details.recovery_point_type == "LatestTag":
        return PointChoice(PointSelector.LATEST_APP_CONSISTENT)
    if details.recovery_point_time:
        try:
            return PointChoice(PointSelector.TIME, str(from_iso(details.recovery_point_time)))
        except ValueError:
            raise ConfigurationError(
                f"recoveryPointTime {details.recovery_point_time!r} is not a time", code="506", remedy="use ISO 8601"
            ) from None
    if details.recovery_point_type == "Custom" or details.recovery_point_id:
        if not details.recovery_point_id:
            raise ConfigurationError("recoveryPointId is required with Custom", code="506", remedy="failback points")
        return PointChoice(PointSelector.POINT, details.recovery_point_id.rstrip("/").rsplit("/", 1)[-1])
    return PointChoice(PointSelector.LATEST)


def applied_point(request: ApplyPointRequest) -> PointChoice:
    """The recovery point to change to. Raises ConfigurationError (another provider, no point named)."""
    wanted = request.properties.details
    if wanted.instance_type not in {direction.provider for direction in Direction}:
        raise ConfigurationError(
            f"instanceType {wanted.instance_type!r} does not fit this item",
            code="506",
            remedy=f'send "instanceType": "{Direction.TO_ON_PREMISES.provider}"',
        )
    if request.properties.recovery_point_id:
        return point_choice(FailoverDetails(recoveryPointId=request.properties.recovery_point_id))
    if not (wanted.recovery_point_type or wanted.recovery_point_id or wanted.recovery_point_time):
        raise ConfigurationError("recoveryPointId is required", code="506", remedy="failback points")
    return point_choice(wanted)
