"""The status of each role as metrics. Pure; the one place where metrics of agents and servers are named.

A role's own endpoint shows what it knows of itself; the configuration server shows the same figures of all components, from
their last heartbeats. The label ``machine`` is the machine id (the agent's component id), also in the servers' figures;
``server`` is the component id of the server that says so (a machine that was moved is for a moment with two).
docs/reference/metrics.md lists them all, checked by a test.
"""

from __future__ import annotations

from collections.abc import Iterator

from failback.model.components import (
    MasterTargetStatus,
    MobilityStatus,
    ProcessServerStatus,
    ReplicaStatus,
    SpooledMachine,
    VolumeFacts,
)
from failback.model.ids import ComponentId, MachineId
from failback.model.traffic import StreamFigures
from failback.runtime.metrics import Metric, Sample

_MACHINE = ("machine",)
_SERVER = ("server",)
_AT_SERVER = ("server", "machine")

LAG = Metric("failback_lag_seconds", "gauge", "Age of captured bytes when they landed, since the epoch began.",
             ("machine", "quantile"))  # fmt: skip
CAPTURING = Metric("failback_capturing", "gauge", "1 while every write of the machine is captured.", _MACHINE)
LINKED = Metric("failback_agent_linked", "gauge", "1 while the agent is linked with its process server.", _MACHINE)
GAP = Metric("failback_gap_open", "gauge", "1 while no recovery point can be made, as the agent sees it.", _MACHINE)
BACKLOG = Metric("failback_backlog_bytes", "gauge", "Captured and not yet durable at the process server.", _MACHINE)
CHURN = Metric(
    "failback_churn_bytes_total", "counter", "Bytes written on the captured disks since the epoch began.", _MACHINE
)
SENT = Metric(
    "failback_sent_bytes_total", "counter", "Bytes put on the wire by the agent since the epoch began.", _MACHINE
)
BY_KIND = Metric("failback_stream_bytes_total", "counter", "Bytes put into the stream, before compression, by kind.",
                 ("machine", "kind"))  # fmt: skip
BATCHES = Metric("failback_batches_total", "counter", "Batches that the agent made.", _MACHINE)
COMPRESSION = Metric(
    "failback_compression_ratio", "gauge", "Payload before compression divided by payload sent.", _MACHINE
)
RING_SIZE = Metric("failback_ring_size_bytes", "gauge", "Size of the kernel ring of captured writes.", _MACHINE)
RING_USED = Metric(
    "failback_ring_used_bytes", "gauge", "Captured and not yet collected from the kernel ring.", _MACHINE
)
DIRTY = Metric("failback_dirty_blocks", "gauge", "Blocks that wait to be read again.", _MACHINE)
UNSPOOLED = Metric("failback_unspooled_bytes", "gauge", "Made and not yet durable at the process server.", _MACHINE)
UNLANDED = Metric("failback_unlanded_items", "gauge", "Items of the stream whose landing is not known.", _MACHINE)
SYNC_TOTAL = Metric("failback_sync_bytes", "gauge", "Size of what the open pass compares.", _MACHINE)
SYNC_DONE = Metric("failback_sync_compared_bytes", "gauge", "How much of it was compared.", _MACHINE)
LIMIT = Metric("failback_bandwidth_limit_bytes_per_second", "gauge", "The bandwidth limit in force; 0: none.", _MACHINE)
HELD_BACK = Metric(
    "failback_bandwidth_held_back", "gauge", "1 while the stream waits for its bandwidth limit.", _MACHINE
)

SPOOL_SIZE = Metric("failback_spool_size_bytes", "gauge", "What all spools of a process server may hold.", _SERVER)
SPOOL_FREE = Metric("failback_spool_free_bytes", "gauge", "What may still be spooled.", _SERVER)
SPOOLED = Metric("failback_spooled_pending_bytes", "gauge", "Spooled and not yet landed.", _AT_SERVER)
SPOOL_QUEUE = Metric("failback_spool_queue_items", "gauge", "Items spooled and not yet landed.", _AT_SERVER)
FORWARDING = Metric(
    "failback_forwarding", "gauge", "1 while the process server is linked with the master target.", _AT_SERVER
)

VOLUME_SIZE = Metric(
    "failback_volume_size_bytes", "gauge", "Size of a retention volume or datastore.", ("server", "volume", "kind")
)
VOLUME_FREE = Metric("failback_volume_free_bytes", "gauge", "Free space of it.", ("server", "volume", "kind"))
JOURNAL = Metric("failback_journal_bytes", "gauge", "Redo, undo and catalogue of a replica.", _AT_SERVER)
LANDED = Metric("failback_landed_sequence", "gauge", "Newest item that is durable in the journal.", _AT_SERVER)
APPLIED = Metric("failback_applied_sequence", "gauge", "Newest item that is applied to the disks.", _AT_SERVER)
LANDED_POSITION = Metric(
    "failback_landed_position_bytes", "gauge", "Position in the stream of what landed.", _AT_SERVER
)
APPLY_QUEUE = Metric("failback_apply_queue_items", "gauge", "Items landed and not yet applied.", _AT_SERVER)
CONSISTENT = Metric(
    "failback_replica_consistent", "gauge", "1 while the replica could be a recovery point.", _AT_SERVER
)
POINTS = Metric(
    "failback_recovery_points", "gauge", "Recovery points that can be reached, by kind.", ("server", "machine", "kind")
)
GAPS = Metric("failback_gaps", "gauge", "Gaps in the timeline that is kept.", _AT_SERVER)
STOPPED = Metric(
    "failback_replica_stopped", "gauge", "1 while nothing lands or is applied, for a stated reason.", _AT_SERVER
)

AGENT_METRICS = (
    LAG, CAPTURING, LINKED, GAP, BACKLOG, CHURN, SENT, BY_KIND, BATCHES, COMPRESSION, RING_SIZE, RING_USED, DIRTY, UNSPOOLED,
    UNLANDED, SYNC_TOTAL, SYNC_DONE, LIMIT, HELD_BACK,
)  # fmt: skip
PROCESS_SERVER_METRICS = (SPOOL_SIZE, SPOOL_FREE, SPOOLED, SPOOL_QUEUE, FORWARDING)
MASTER_TARGET_METRICS = (
    VOLUME_SIZE, VOLUME_FREE, JOURNAL, LANDED, APPLIED, LANDED_POSITION, APPLY_QUEUE, CONSISTENT, POINTS, GAPS, STOPPED,
)  # fmt: skip


def of_agent(machine_id: MachineId, status: MobilityStatus) -> Iterator[Sample]:
    machine = str(machine_id)
    yield CAPTURING(status.capture == "capturing", machine)
    yield LINKED(status.linked, machine)
    yield GAP(bool(status.gap), machine)
    yield BACKLOG(status.backlog_bytes, machine)
    yield CHURN(status.bytes_changed, machine)
    yield SENT(status.bytes_sent, machine)
    if status.lag is not None:
        for quantile, milliseconds in (("0.5", status.lag.p50), ("0.99", status.lag.p99), ("1", status.lag.maximum)):
            yield LAG(milliseconds / 1000, machine, quantile)
    if status.bandwidth is not None:
        yield LIMIT(status.bandwidth.bytes_per_second, machine)
        yield HELD_BACK(status.bandwidth.held_back, machine)
    open_passes = [sync for sync in status.sync if not sync.done]
    yield SYNC_TOTAL(sum(sync.bytes_total for sync in open_passes), machine)
    yield SYNC_DONE(sum(sync.bytes_compared for sync in open_passes), machine)
    if status.figures is not None:
        yield from _of_stream(machine, status.figures)


def _of_stream(machine: str, figures: StreamFigures) -> Iterator[Sample]:
    yield RING_SIZE(figures.ring_bytes, machine)
    yield RING_USED(figures.ring_used_bytes, machine)
    yield DIRTY(figures.dirty_blocks, machine)
    yield UNSPOOLED(figures.unspooled_bytes, machine)
    yield UNLANDED(figures.unlanded_items, machine)
    yield BATCHES(figures.batches, machine)
    for kind, count in (
        ("captured", figures.captured_bytes), ("reread", figures.reread_bytes), ("digest", figures.digest_bytes),
    ):  # fmt: skip
        yield BY_KIND(count, machine, kind)
    if figures.payload_sent_bytes:
        yield COMPRESSION(round(figures.payload_bytes / figures.payload_sent_bytes, 4), machine)


def of_process_server(server: ComponentId, status: ProcessServerStatus) -> Iterator[Sample]:
    yield SPOOL_SIZE(status.spool_capacity_bytes, str(server))
    yield SPOOL_FREE(status.spool_free_bytes, str(server))
    for machine in status.machines:
        yield from _of_spool(str(server), machine)


def _of_spool(server: str, spooled: SpooledMachine) -> Iterator[Sample]:
    machine = str(spooled.machine_id)
    yield SPOOLED(spooled.pending_bytes, server, machine)
    yield SPOOL_QUEUE(max(0, spooled.spooled_sequence - spooled.landed_sequence), server, machine)
    yield FORWARDING(spooled.master_target_connected, server, machine)


def of_master_target(server: ComponentId, status: MasterTargetStatus) -> Iterator[Sample]:
    for kind, volumes in (("retention", status.retention_volumes), ("datastore", status.datastores)):
        for volume in volumes:
            yield from _of_volume(str(server), kind, volume)
    for replica in status.replicas:
        yield from _of_replica(str(server), replica)


def _of_volume(server: str, kind: str, volume: VolumeFacts) -> Iterator[Sample]:
    yield VOLUME_SIZE(volume.capacity_bytes, server, volume.name, kind)
    yield VOLUME_FREE(volume.free_bytes, server, volume.name, kind)


def _of_replica(server: str, replica: ReplicaStatus) -> Iterator[Sample]:
    machine = str(replica.machine_id)
    yield JOURNAL(replica.journal_bytes, server, machine)
    yield LANDED(replica.landed_sequence, server, machine)
    yield APPLIED(replica.applied_sequence, server, machine)
    yield LANDED_POSITION(replica.landed_ring, server, machine)
    yield APPLY_QUEUE(max(0, replica.landed_sequence - replica.applied_sequence), server, machine)
    yield CONSISTENT(replica.consistent, server, machine)
    reachable = [point.kind.value for point in replica.points if not point.abandoned]
    for kind in sorted(set(reachable)):
        yield POINTS(reachable.count(kind), server, machine, kind)
    yield GAPS(len(replica.gaps), server, machine)
    yield STOPPED(replica.stands_still, server, machine)
