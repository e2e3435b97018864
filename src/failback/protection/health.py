"""What the monitors think of components and items: pure rules from facts to verdicts.

Each rule is one small function that gives a verdict in one sentence, also when all is well (that sentence becomes the event
when a warning ends). Ages are arguments; None means *not known* and never raises an alarm by itself. A rule whose
subject does not apply gives None: the rule then has no verdict at all.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from failback.model.components import Role, VolumeFacts

CLOCK_SKEW_WARNING_SECONDS = 5.0
CLOCK_SKEW_CRITICAL_SECONDS = 900.0
CERTIFICATE_WARNING_DAYS = 30.0
VOLUME_WARNING_SHARE = 0.20
"""Free share below which a retention volume is reported (Azure Site Recovery's threshold of 80 % used)."""
VOLUME_CRITICAL_SHARE = 0.05
SPOOL_WARNING_SHARE = 0.20
SPOOL_CRITICAL_SHARE = 0.05
GAP_WARNING_SECONDS = 60.0
"""Short gaps (a re-read, one batch) belong to normal life."""
COMMIT_PENDING = "UnplannedFailoverCommitPendingStatesBegin"


class Level(enum.Enum):
    NORMAL = "Normal"
    WARNING = "Warning"
    CRITICAL = "Critical"


_ORDER = (Level.NORMAL, Level.WARNING, Level.CRITICAL)


@dataclass(frozen=True, slots=True)
class Verdict:
    rule: str
    level: Level
    code: str
    sentence: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class ComponentFacts:
    """``silent_seconds``: since its last heartbeat, or since this server began to listen if that is later."""

    name: str
    role: Role
    silent_seconds: float
    alarm_seconds: float
    clock_skew_seconds: float = 0.0
    certificate_days_left: float | None = None
    certificate_life_days: float = 365.0
    spool_capacity_bytes: int = 0
    spool_free_bytes: int = 0
    volumes_in_use: tuple[VolumeFacts, ...] = ()
    """Retention volumes that hold a replica's journal."""


@dataclass(frozen=True, slots=True)
class Room:
    """A place that fills up: of ``capacity_bytes`` so much is free."""

    name: str
    capacity_bytes: int
    free_bytes: int

    @property
    def free_share(self) -> float:
        return self.free_bytes / self.capacity_bytes if self.capacity_bytes else 1.0


@dataclass(frozen=True, slots=True)
class ItemFacts:
    """``servers_silent`` names the process server and master target that are lost. Ages in seconds."""

    name: str
    state: str
    replicating: bool
    agent_lost: bool = False
    servers_lost: tuple[str, ...] = ()
    capture: str = ""
    capture_reason: str = ""
    self_test: str = ""
    comparison_minutes: int = 0
    smeared: int = 0
    """Of a machine under periodic comparison: comparisons since the last consistent place."""
    link_up: bool = True
    sync_open: bool = False
    gap: str = ""
    gap_seconds: float | None = None
    point_age_seconds: float | None = None
    threshold_seconds: float = 900.0
    replica_problem: str = ""
    spool: Room | None = None
    """Of its process server; None while that is not heard from."""
    retention: Room | None = None
    """Of the retention volume that holds its journal."""
    spool_problem: str = ""
    """Why its stream stands at the process server, as that says; empty while it flows."""
    twin_hardware_id: str = ""
    twin_seen_seconds: float | None = None
    alarm_seconds: float = 60.0


ComponentRule = Callable[[ComponentFacts], Verdict | None]
ItemRule = Callable[[ItemFacts], Verdict | None]


def worst(verdicts: Iterable[Verdict]) -> Level:
    return max((verdict.level for verdict in verdicts), key=_ORDER.index, default=Level.NORMAL)


# --- components -----------------------------------------------------------------------------------------------------


def _heartbeat(facts: ComponentFacts) -> Verdict:
    who = f"The {facts.role.value} {facts.name}"
    if facts.silent_seconds <= facts.alarm_seconds:
        return Verdict("heartbeat", Level.NORMAL, "ComponentReturned", f"{who} is heard again.")
    return Verdict(
        "heartbeat", Level.CRITICAL, "ComponentLost", f"{who} has not been heard for {_duration(facts.silent_seconds)}.",
        "Check that its machine and service run and that it reaches the configuration server.",
    )  # fmt: skip


def _clock(facts: ComponentFacts) -> Verdict:
    skew = abs(facts.clock_skew_seconds)
    who = f"The clock of {facts.role.value} {facts.name}"
    if skew < CLOCK_SKEW_WARNING_SECONDS:
        return Verdict("clock", Level.NORMAL, "ClockInStep", f"{who} is in step.")
    side = "ahead" if facts.clock_skew_seconds > 0 else "behind"
    level = Level.CRITICAL if skew >= CLOCK_SKEW_CRITICAL_SECONDS else Level.WARNING
    return Verdict(
        "clock", level, "ClockSkew", f"{who} is {skew:.0f} s {side}: times of its recovery points are off by that.",
        "Synchronise both clocks (chrony or systemd-timesyncd).",
    )  # fmt: skip


def _certificate(facts: ComponentFacts) -> Verdict | None:
    left = facts.certificate_days_left
    if left is None:
        return None
    who = f"The certificate of {facts.role.value} {facts.name}"
    remedy = "It renews itself: see its log. With a token in its token_file (failback component token) it enrols again."
    if left <= 0:
        return Verdict("certificate", Level.CRITICAL, "CertificateExpired", f"{who} has expired.", remedy)
    if left < min(CERTIFICATE_WARNING_DAYS, facts.certificate_life_days / 6):
        return Verdict("certificate", Level.WARNING, "CertificateExpires", f"{who} ends in {left:.0f} days.", remedy)
    return Verdict("certificate", Level.NORMAL, "CertificateValid", f"{who} is valid.")


def _spool(facts: ComponentFacts) -> Verdict | None:
    if facts.role is not Role.PROCESS_SERVER or not facts.spool_capacity_bytes:
        return None
    share = facts.spool_free_bytes / facts.spool_capacity_bytes
    where = f"The spool of process server {facts.name}"
    if share >= SPOOL_WARNING_SHARE:
        return Verdict("spool", Level.NORMAL, "SpoolHasRoom", f"{where} has room again.")
    level = Level.CRITICAL if share < SPOOL_CRITICAL_SHARE else Level.WARNING
    return Verdict(
        "spool", level, "SpoolLow", f"{where} has {share:.0%} left: the machines behind it are slowed down when it is full.",
        "Check the link to the master target, or enlarge the spool.",
    )  # fmt: skip


def _volumes(facts: ComponentFacts) -> Verdict | None:
    if facts.role is not Role.MASTER_TARGET or not facts.volumes_in_use:
        return None
    fullest = min(facts.volumes_in_use, key=_free_share)
    share = _free_share(fullest)
    where = f"The retention volume {fullest.name} of master target {facts.name}"
    if share >= VOLUME_WARNING_SHARE:
        return Verdict("retention-volume", Level.NORMAL, "RetentionVolumeHasRoom", f"{where} has room again.")
    level = Level.CRITICAL if share < VOLUME_CRITICAL_SHARE else Level.WARNING
    return Verdict(
        "retention-volume", level, "RetentionVolumeLow",
        f"{where} has {share:.0%} left: when it is full, old recovery points go and replication stops.",
        "Enlarge the volume or shorten the retention.",
    )  # fmt: skip


def _free_share(volume: VolumeFacts) -> float:
    return volume.free_bytes / volume.capacity_bytes if volume.capacity_bytes else 1.0


COMPONENT_RULES: tuple[ComponentRule, ...] = (_heartbeat, _clock, _certificate, _spool, _volumes)


def judge_component(facts: ComponentFacts) -> list[Verdict]:
    return [verdict for rule in COMPONENT_RULES if (verdict := rule(facts)) is not None]


# --- items ----------------------------------------------------------------------------------------------------------


def _agent(facts: ItemFacts) -> Verdict | None:
    if not facts.replicating:
        return None
    if not facts.agent_lost:
        return Verdict("agent", Level.NORMAL, "AgentReturned", f"The mobility service of {facts.name} is heard again.")
    return Verdict(
        "agent", Level.CRITICAL, "AgentLost",
        f"The mobility service of {facts.name} is silent: its changes are not known to reach the replica.",
        "Check that the machine runs and that its mobility service reaches the configuration server.",
    )  # fmt: skip


def _servers(facts: ItemFacts) -> Verdict | None:
    if not facts.replicating:
        return None
    if not facts.servers_lost:
        return Verdict("servers", Level.NORMAL, "ServersReturned", f"The servers of {facts.name} are heard again.")
    lost = " and ".join(facts.servers_lost)
    return Verdict(
        "servers", Level.WARNING, "ServersLost", f"{facts.name} depends on {lost}, which cannot be heard.",
        "Bring the server back; the stream goes on where it stopped.",
    )  # fmt: skip


def _capture(facts: ItemFacts) -> Verdict | None:
    if not facts.replicating or facts.agent_lost:
        return None
    if facts.comparison_minutes and facts.capture != "failed":
        none = " No recovery point since it was protected this way." if facts.point_age_seconds is None else ""
        smeared = f" It wrote during the last {facts.smeared}: no point came of them." if facts.smeared else ""
        return Verdict(
            "capture", Level.WARNING, "PeriodicComparison",
            f"{facts.name} is replicated by periodic comparison every {facts.comparison_minutes} min, not by capture: what it "
            f"wrote since the last one is nowhere else.{smeared}{none}",
            "Boot a kernel that can be captured, then failback resync --capture. A point by a short standstill: failback point "
            "create.",
        )  # fmt: skip
    if facts.capture == "failed" or facts.self_test == "failed":
        reason = facts.capture_reason or "its self-test failed"
        return Verdict(
            "capture", Level.CRITICAL, "CaptureFailed", f"Writes of {facts.name} are not captured: {reason}.",
            "See the mobility service's log on the machine.",
        )  # fmt: skip
    return Verdict("capture", Level.NORMAL, "CaptureRuns", f"Writes of {facts.name} are captured.")


def _gap(facts: ItemFacts) -> Verdict | None:
    if not facts.replicating or facts.comparison_minutes:  # there a gap is the rule
        return None
    long = facts.gap_seconds is not None and facts.gap_seconds > GAP_WARNING_SECONDS
    if facts.gap and long and not facts.sync_open:
        return Verdict(
            "gap", Level.WARNING, "GapOpen",
            f"No recovery point of {facts.name} can be made for {_duration(facts.gap_seconds or 0)}: {facts.gap}.",
            "It closes by itself when the blocks in question were read again; the earlier points stay usable.",
        )  # fmt: skip
    return Verdict("gap", Level.NORMAL, "GapClosed", f"Recovery points of {facts.name} are made again.")


def _rpo(facts: ItemFacts) -> Verdict | None:
    if not facts.replicating or facts.sync_open or facts.point_age_seconds is None:
        return None
    if facts.point_age_seconds <= facts.threshold_seconds:
        return Verdict(
            "rpo", Level.NORMAL, "RpoWithinThreshold", f"The newest recovery point of {facts.name} is recent."
        )
    return Verdict(
        "rpo", Level.WARNING, "RpoExceeded",
        f"The newest recovery point of {facts.name} is {_duration(facts.point_age_seconds)} old; the policy allows "
        f"{_duration(facts.threshold_seconds)}.",
        "Look at the item's other warnings: they name what holds its points back.",
    )  # fmt: skip


def _replica(facts: ItemFacts) -> Verdict | None:
    if not facts.replicating:
        return None
    if facts.replica_problem:
        return Verdict(
            "replica", Level.CRITICAL, "ReplicaFailed", f"The replica of {facts.name}: {facts.replica_problem}.",
            "See the master target's log.",
        )  # fmt: skip
    return Verdict("replica", Level.NORMAL, "ReplicaWorks", f"The replica of {facts.name} works.")


def _spool_room(facts: ItemFacts) -> Verdict | None:
    """Of the item too, so that who looks at a machine sees what is about to slow it down."""
    if not facts.replicating or facts.spool is None:
        return None
    place = f"the spool of process server {facts.spool.name}"
    if "space" in facts.spool_problem or "full" in facts.spool_problem:
        return Verdict(
            "spool-room", Level.CRITICAL, "SpoolFull",
            f"The stream of {facts.name} waits: {place} is full. Nothing is lost; it goes on by itself when there is room.",
            "Make room on the spool's disk, enlarge spool_limit_bytes, or move the item (failback item move).",
        )  # fmt: skip
    if facts.spool.free_share >= SPOOL_WARNING_SHARE:
        return Verdict(
            "spool-room", Level.NORMAL, "SpoolHasRoom", f"The stream of {facts.name} has room to be spooled."
        )
    return Verdict(
        "spool-room", Level.WARNING, "SpoolLow",
        f"{facts.name} depends on {place}, which is {1 - facts.spool.free_share:.0%} full.",
        "Check the link to the master target, or enlarge the spool.",
    )  # fmt: skip


def _retention_room(facts: ItemFacts) -> Verdict | None:
    if not facts.replicating or facts.retention is None:
        return None
    place = f"the retention volume {facts.retention.name}"
    if "is full" in facts.replica_problem:
        return Verdict(
            "retention-room", Level.CRITICAL, "RetentionVolumeFull",
            f"Nothing lands for {facts.name}: {place} is full. Nothing is lost; it goes on by itself when there is room.",
            "Enlarge the volume, delete what does not belong there, or shorten the retention.",
        )  # fmt: skip
    if facts.retention.free_share >= VOLUME_WARNING_SHARE:
        return Verdict(
            "retention-room", Level.NORMAL, "RetentionVolumeHasRoom", f"The history of {facts.name} has room to grow."
        )
    return Verdict(
        "retention-room", Level.WARNING, "RetentionVolumeLow",
        f"The history of {facts.name} lies on {place}, which is {1 - facts.retention.free_share:.0%} full.",
        "Enlarge the volume or shorten the retention: when it is full, replication stops.",
    )  # fmt: skip


def _twin(facts: ItemFacts) -> Verdict | None:
    seen = facts.twin_seen_seconds
    if not facts.twin_hardware_id or seen is None:
        return None
    if facts.state == COMMIT_PENDING or seen > facts.alarm_seconds:
        return Verdict("twin", Level.NORMAL, "TwinGone", f"No second copy of {facts.name} is running.")
    return Verdict(
        "twin", Level.WARNING, "TwinPoweredOn",
        f"A second copy of {facts.name} runs on other hardware ({facts.twin_hardware_id}); not one byte of it is taken.",
        "Switch that machine off, or take it from the network.",
    )  # fmt: skip


ITEM_RULES: tuple[ItemRule, ...] = (
    _agent, _servers, _capture, _gap, _rpo, _replica, _spool_room, _retention_room, _twin,
)  # fmt: skip


def judge_item(facts: ItemFacts) -> list[Verdict]:
    return [verdict for rule in ITEM_RULES if (verdict := rule(facts)) is not None]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"
