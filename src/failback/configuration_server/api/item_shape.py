"""The read model of an item: ``ReplicationProtectedItemProperties`` with ``InMage`` or ``InMageAzureV2`` details.

Pure: a view and the time in, JSON out. The list view leaves out disks and servers, as the real service does. Figures
that the wire has no place for (milliseconds of lag, the stream's sequences, gaps) stand under ``failback`` in the provider's
details; Azure's clients skip them. The queue depths of the wire are per disk, ours are per machine: the first disk
carries them, the others 0, so that their sum is right.
"""

from __future__ import annotations

from typing import Any

from failback.configuration_server.api.arm import CONTAINER, FABRIC, NEVER_RUN, Vault, envelope, timestamp
from failback.configuration_server.api.item_view import ItemView
from failback.configuration_server.database.events import VerdictRow
from failback.configuration_server.database.items import ItemDiskRow
from failback.model.bandwidth import BandwidthFigures
from failback.model.components import ScrubStatus, SyncProgress
from failback.protection.bandwidth_rules import spoken_rate, spoken_window
from failback.protection.operations import Direction, Side
from failback.protection.states import State, active_location, description

ITEM_TYPE = "replicationFabrics/replicationProtectionContainers/replicationProtectedItems"
MEGABYTE = 1 << 20
RESYNC_REQUIRED = "ECH0007"
_SITES = {Side.ON_PREMISES: "OnPrem", Side.CLOUD: "Azure"}


def item_resource(vault: Vault, item: ItemView, now_ns: int, *, full: bool = True) -> dict[str, Any]:
    return envelope(vault.item(item.row.name), ITEM_TYPE, _properties(vault, item, now_ns, full))


def _properties(vault: Vault, item: ItemView, now_ns: int, full: bool) -> dict[str, Any]:
    row = item.row
    return {
        "friendlyName": row.friendly_name,
        "protectedItemType": item.direction.provider,
        "protectableItemId": f"{vault.container()}/replicationProtectableItems/{_protectable(item)}",
        "recoveryServicesProviderId": None,
        "primaryFabricFriendlyName": row.cloud_fabric
        if item.direction.source is Side.CLOUD
        else row.on_premises_fabric,
        "primaryFabricProvider": "InMageFabric",
        "recoveryFabricFriendlyName": row.on_premises_fabric
        if item.direction.source is Side.CLOUD
        else row.cloud_fabric,
        "recoveryFabricId": vault.resource("replicationFabrics", FABRIC),
        "primaryProtectionContainerFriendlyName": CONTAINER,
        "recoveryProtectionContainerFriendlyName": CONTAINER,
        "protectionState": item.state.value,
        "protectionStateDescription": description(item.state),
        "activeLocation": active_location(item.state),
        "testFailoverState": "None",
        "testFailoverStateDescription": "None",
        "allowedOperations": [operation.value for operation in item.allowed() if operation.on_the_wire],
        "replicationHealth": row.replication_health or "None",
        "failoverHealth": "Normal",
        "healthErrors": [health_error(verdict) for verdict in item.verdicts],
        "policyId": vault.resource("replicationPolicies", item.policy.name),
        "policyFriendlyName": item.policy.name,
        "lastSuccessfulFailoverTime": timestamp(row.last_failover_wall_ns) if row.last_failover_wall_ns else None,
        "lastSuccessfulTestFailoverTime": None,
        "currentScenario": _scenario(vault, item),
        "failoverRecoveryPointId": row.chosen_point_id or None,
        "providerSpecificDetails": _details(item, now_ns, full),
        "recoveryContainerId": vault.container(),
    }


def _protectable(item: ItemView) -> str:
    """The machine that is protected now: the real service switches this reference at a reprotect."""
    row = item.row
    if item.direction.source is Side.CLOUD:
        return f"{row.cloud_fabric}.{row.cloud_fabric_id}"
    return f"{row.on_premises_fabric}.{row.on_premises_fabric_id}"


def _scenario(vault: Vault, item: ItemView) -> dict[str, Any]:
    if item.job is None:
        return {"scenarioName": "None", "jobId": vault.job("None"), "startTime": NEVER_RUN}
    return {
        "scenarioName": item.job.scenario,
        "jobId": vault.job(item.job.job_id),
        "startTime": timestamp(item.job.started_wall_ns or item.job.created_wall_ns),
    }


def health_error(verdict: VerdictRow) -> dict[str, Any]:
    return {
        "errorSource": "Failback",
        "errorType": verdict.rule,
        "errorLevel": verdict.level,
        "errorCategory": "Replication",
        "errorCode": verdict.code or verdict.rule,
        "summaryMessage": verdict.sentence,
        "errorMessage": verdict.sentence,
        "possibleCauses": "",
        "recommendedAction": verdict.remedy,
        "creationTimeUtc": timestamp(verdict.since_wall_ns),
        "entityId": verdict.subject_id,
        "errorId": f"{verdict.subject_id}:{verdict.rule}",
        "customerResolvability": "Allowed",
        "innerHealthErrors": [],
    }


def _details(item: ItemView, now_ns: int, full: bool) -> dict[str, Any]:
    row, agent = item.row, item.agent
    rpo = rpo_seconds(item, now_ns)
    retained = [point for point in item.points if not point.abandoned]
    details: dict[str, Any] = {
        "instanceType": item.direction.provider,
        "vmId": row.cloud_hardware_id if item.runs_at is Side.CLOUD else row.on_premises_hardware_id,
        "activeSiteType": _SITES[item.runs_at],
        "protectionStage": row.protection_stage,
        "vmProtectionState": item.state.value,
        "vmProtectionStateDescription": description(item.state),
        "resyncDetails": {
            "initialReplicationType": "Online",
            "initialReplicationProgressPercentage": str(sync_percentage(item)),
        },
        "retentionWindowStart": timestamp(retained[-1].wall_ns) if retained else None,
        "retentionWindowEnd": timestamp(retained[0].wall_ns) if retained else None,
        "rpoInSeconds": rpo,
        "lastRpoCalculatedTime": timestamp(agent.last_heartbeat_wall_ns) if agent and rpo is not None else None,
        "lastUpdateReceivedTime": timestamp(agent.last_heartbeat_wall_ns) if agent else None,
        "lastHeartbeat": timestamp(agent.last_heartbeat_wall_ns) if agent else None,
        "ipAddress": agent.addresses[0] if agent and agent.addresses else "",
        "multiVmGroupId": row.group_id,
        "multiVmGroupName": item.group.name if item.group else "",
        "multiVmSyncStatus": "Enabled" if item.group else "Disabled",
        "agentDetails": {"agentVersion": agent.version if agent else "", "agentUpdateStatus": "None"},
        "discoveryType": "Physical" if item.direction.source is Side.CLOUD else "vCenter",
        "osDetails": {"osType": row.os_family or (agent.os_family if agent else "")},
        "replicaId": row.on_premises_fabric_id,
        "datastores": [row.datastore] if row.datastore else [],
        "validationErrors": [],
    }
    if full:
        details |= {
            "protectedDisks": [_disk(item, disk, rpo) for disk in row.disks],
            "processServerId": row.process_server_id,
            "masterTargetId": row.master_target_id,
            "failback": _own(item),
        }
    else:
        details |= {"protectedDisks": [], "processServerId": None, "masterTargetId": None}
    return details


def _disk(item: ItemView, disk: ItemDiskRow, rpo: int | None) -> dict[str, Any]:
    sync = sync_of(item, disk.disk_id)
    first = disk.index == min(other.index for other in item.row.disks)
    running = sync is not None and not sync.done
    is_due = item.state is State.COMMITTED and item.runs_at is Side.CLOUD
    """Committed in the cloud: the way home begins with a comparison of all disks."""
    sent = _percentage(sync) if sync else (100 if item.state is State.PROTECTED else 0)
    return {
        "diskId": disk.disk_id,
        "diskName": f"Disk{disk.index}",
        "protectionStage": "Resync" if running else item.row.protection_stage,
        "rpoInSeconds": rpo,
        "healthErrorCode": RESYNC_REQUIRED if is_due else None,
        "resyncRequired": "Required" if running or is_due else "NotRequired",
        "resyncProgressPercentage": sent,
        "diskCapacityInBytes": disk.cloud_size_bytes or disk.size_bytes,
        "sourceDataInMB": round(item.mobility.backlog_bytes / MEGABYTE, 3) if first else 0.0,
        "psDataInMB": round(item.spooled.pending_bytes / MEGABYTE, 3) if first and item.spooled else 0.0,
        "diskResized": "NotResized",
        "resyncProcessedBytes": sync.bytes_compared if sync else 0,
        "resyncTotalTransferredBytes": sync.bytes_sent if sync else 0,
        "progressHealth": "InProgress" if running else "None",
        "progressStatus": "InProgress" if running else "Completed",
        "onPremisesPath": disk.path,
        "created": disk.create,
        "removed": disk.removed,
        "resyncTotalBytes": sync.bytes_total if sync else 0,
        "resyncDifferingBytes": sync.bytes_differing if sync else 0,
    }


def _own(item: ItemView) -> dict[str, Any]:
    """What only our own clients read."""
    row, status, replica = item.row, item.mobility, item.replica
    lag = status.lag
    return {
        "itemId": row.item_id,
        "machineId": row.machine_id,
        "direction": item.direction.value,
        "runsAt": item.runs_at.value,
        "onPremises": {
            "fabric": row.on_premises_fabric,
            "machine": row.on_premises_name,
            "id": row.on_premises_fabric_id,
        },
        "cloud": {"fabric": row.cloud_fabric, "machine": row.cloud_name, "id": row.cloud_fabric_id},
        "processServer": item.process_server.hostname if item.process_server else "",
        "masterTarget": item.master_target.hostname if item.master_target else "",
        "retentionVolume": row.retention_volume,
        "datastore": row.datastore,
        "epoch": row.epoch,
        "capture": {"state": status.capture, "reason": status.capture_reason, "selfTest": status.self_test},
        "replication": "periodic comparison" if row.comparison_minutes else "continuous",
        "comparison": _comparison(item),
        "linked": status.linked,
        "stream": {
            "sentSequence": status.sent_sequence,
            "spooledSequence": status.spooled_sequence,
            "landedSequence": status.landed_sequence,
            "appliedSequence": replica.applied_sequence if replica else 0,
            "backlogBytes": status.backlog_bytes,
            "spooledBytes": item.spooled.pending_bytes if item.spooled else 0,
        },
        "bytesChanged": status.bytes_changed,
        "bytesSent": status.bytes_sent,
        "bandwidth": _bandwidth(item),
        "lagMilliseconds": {"p50": lag.p50, "p99": lag.p99, "maximum": lag.maximum, "samples": lag.samples}
        if lag
        else None,
        "consistent": bool(replica and replica.consistent),
        "replicaState": replica.state if replica else "",
        "replicaProblem": replica.problem if replica else "",
        "undoProven": timestamp(replica.undo_proven_wall_ns) if replica and replica.undo_proven_wall_ns else None,
        "journalBytes": replica.journal_bytes if replica else 0,
        "gap": (replica.gap if replica else "") or status.gap,
        "gaps": [
            {
                "cause": gap.cause,
                "started": timestamp(gap.started_wall_ns),
                "ended": timestamp(gap.ended_wall_ns) if gap.ended_wall_ns else None,
            }
            for gap in item.gaps
        ],
        "recoveryPoints": len([point for point in item.points if not point.abandoned]),
        "abandonedReason": row.abandoned_reason,
        "scrub": _scrub(status.scrub),
    }


def _bandwidth(item: ItemView) -> dict[str, Any]:
    """The limit as it was set, and what the agent makes of it now."""
    limit, now = item.bandwidth, item.mobility.bandwidth or BandwidthFigures()
    return {
        "limit": spoken_rate(limit.bytes_per_second),
        "from": "item" if item.row.bandwidth else "policy",
        "schedule": [spoken_window(window) for window in limit.windows],
        "timeZone": limit.time_zone,
        "nowBytesPerSecond": now.bytes_per_second,
        "heldBack": now.held_back,
        "problem": now.problem,
    }


def _comparison(item: ItemView) -> dict[str, Any] | None:
    """Only of a machine that is replicated by periodic comparison."""
    now = item.mobility.comparison
    if not item.row.comparison_minutes:
        return None
    return {
        "everyMinutes": item.row.comparison_minutes,
        "running": bool(now and now.running),
        "lastSeconds": round(now.seconds, 1) if now else 0.0,
        "lastFinished": timestamp(now.finished_wall_ns) if now and now.finished_wall_ns else None,
        "lastConsistent": timestamp(now.consistent_wall_ns) if now and now.consistent_wall_ns else None,
        "smearedSince": now.smeared if now else 0,
    }


def _scrub(scrub: ScrubStatus | None) -> dict[str, Any] | None:
    if scrub is None:
        return None
    return {
        "scrubId": scrub.scrub_id,
        "state": scrub.state,
        "started": timestamp(scrub.started_wall_ns),
        "finished": timestamp(scrub.finished_wall_ns) if scrub.finished_wall_ns else None,
        "bytesTotal": scrub.bytes_total,
        "bytesCompared": scrub.bytes_compared,
        "repairedBytes": scrub.repaired_bytes,
        "discardedBytes": scrub.discarded_bytes,
        "findings": [
            {
                "disk": one.disk_index, "offsetBytes": one.offset_bytes, "lengthBytes": one.length_bytes,
                "found": timestamp(one.found_wall_ns),
            }
            for one in scrub.findings
        ],
    }  # fmt: skip


def sync_of(item: ItemView, disk_id: str) -> SyncProgress | None:
    """The disk's progress in the pass that the item asks for; None outside of it."""
    if not item.row.pass_id or item.mobility.pass_id != item.row.pass_id:
        return None
    return next((sync for sync in item.mobility.sync if sync.disk_id == disk_id), None)


def sync_percentage(item: ItemView) -> int:
    """How far the pass is over all disks; 100 once the item is protected."""
    if item.direction is Direction.TO_ON_PREMISES and item.state is State.REPLICATING:
        passes = [sync for disk in item.row.disks if (sync := sync_of(item, disk.disk_id))]
        total = sum(sync.bytes_total for sync in passes)
        done = sum(sync.bytes_total if sync.done else sync.bytes_compared for sync in passes)
        return min(100, 100 * done // total) if total else 0
    return 100


def rpo_seconds(item: ItemView, now_ns: int) -> int | None:
    """The age of the newest state that could be recovered, in whole seconds, rounded up; None while nothing replicates.

    Without a gap and with a fresh heartbeat it is the lag of bytes from write to landing; else it grows from the newest
    recovery point or from the last heartbeat.
    """
    if item.state is not State.PROTECTED or item.agent is None:
        return None
    since_heartbeat = max(0, now_ns - item.agent.last_heartbeat_wall_ns) / 1e9
    if item.mobility.gap or (item.replica is not None and item.replica.gap):
        newest = max((point.wall_ns for point in item.points if not point.abandoned), default=0)
        return int(max(0, now_ns - newest) / 1e9) if newest else None
    if item.mobility.lag is None:
        return None
    quiet = since_heartbeat if since_heartbeat > 30 else 0.0
    return -int(-(item.mobility.lag.p50 / 1000 + quiet) // 1)


def _percentage(sync: SyncProgress) -> int:
    if sync.done:
        return 100
    return min(99, 100 * sync.bytes_compared // sync.bytes_total) if sync.bytes_total else 0
