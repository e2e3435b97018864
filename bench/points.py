"""Many points over much churn: how fast any point opens as a view, how fast the disk is rolled back to one."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

from bench.chain import Chain, Role
from bench.ground import GIBIBYTE, MEBIBYTE, PAIRS, SMALL, Ground, half_full, machine_facts, text_like
from bench.history import EXTENT_BYTES, History, digest, place_disk
from bench.points_peers import Kind, btrfs_snapshots, qcow2_overlays
from bench.results import Bound, Result
from failback.block.raw import RawDevice
from failback.journal.journal import Journal
from failback.model import orders
from failback.model.ids import MachineId
from failback.model.points import PointChoice, PointSelector
from failback.model.policy import ReplicationPolicy

SIZE = (1 if SMALL else 4) * GIBIBYTE
CHURN = 500_000_000 if SMALL else 10_000_000_000
POINTS = 25 if SMALL else 500
VIEWS = 20
PEER_POINTS = min(POINTS, 100)
"""The peers' chains are built with one program for each point; their churn for each point is ours."""


def mixed(text: bytes) -> Any:
    def content(chance: random.Random) -> bytes:
        if chance.random() < 0.5:
            return os.urandom(EXTENT_BYTES)
        begin = chance.randrange(len(text) - EXTENT_BYTES)
        return text[begin : begin + EXTENT_BYTES]

    return content


def rolled_back(chain: Chain, point_id: str) -> tuple[int, float]:
    """Bytes undone and seconds, the order's way through the control loop included."""
    began = time.monotonic()
    arguments = orders.PreparePoint(MachineId(chain.machine_id), PointChoice(PointSelector.POINT, point_id))
    result = chain.planes[Role.MASTER_TARGET].order(orders.PREPARE_POINT, arguments, 1200)
    return int(result["bytes_rolled_back"]), time.monotonic() - began


def view_seconds(directory: Path, replica: Path, point_ids: list[str]) -> list[float]:
    """From asking for the view until the first MiB at a random place was read from it."""
    journal = Journal.open(directory)
    device = RawDevice(replica)
    journal.start({0: device}, lambda _: None)
    chance, found = random.Random(3), []
    for point_id in chance.sample(point_ids, min(VIEWS, len(point_ids))):
        began = time.monotonic()
        view = journal.view(point_id, 0)
        view.read(chance.randrange(SIZE // MEBIBYTE) * MEBIBYTE, MEBIBYTE)
        found.append(time.monotonic() - began)
        view.close()
    journal.close()
    device.close()
    return found


def bench() -> Result:
    machine = machine_facts()
    runs, equal = [], True
    policy = ReplicationPolicy(name="bench", redo_window_seconds=10)
    with Ground() as ground:
        text = text_like(16 * MEBIBYTE, 5)
        for number in range(min(PAIRS, 3)):
            target = ground.volume(f"target-{number}", 3 * SIZE + 2 * CHURN)
            mirror = ground.on_disk / f"mirror-{number}.image"
            half_full(mirror, SIZE)
            chain = Chain(
                ground.on_disk / f"chain-{number}", "/dev/null", SIZE, spool=ground.on_disk / f"spool-{number}",
                journal=target / "journal", target=target / "store", policy=policy, roles=(Role.MASTER_TARGET,),
            )  # fmt: skip
            with chain:
                place_disk(chain, mirror)
                middle = POINTS // 2
                told = History(chain, mirror, mixed(text)).send(CHURN, POINTS, {middle})
                points = [point for point in chain.replica["points"] if point["kind"] == "AppConsistent"]
                oldest_bytes, oldest_seconds = rolled_back(chain, points[0]["point_id"])
                middle_bytes, middle_seconds = rolled_back(chain, points[middle]["point_id"])
                equal &= digest(chain.replica_path) == told.digests[middle]
                chain.planes[Role.MASTER_TARGET].order(
                    orders.RESUME_REPLICA, orders.ReplicaOrder(MachineId(chain.machine_id)), 1200
                )
                equal &= digest(chain.replica_path) == digest(mirror) and len(points) == POINTS
            (directory,) = (target / "journal").glob("failback/*/")
            opened = view_seconds(directory, chain.replica_path, [point["point_id"] for point in points])
            runs.append(
                {
                    "view_seconds": round(max(opened), 3), "view_seconds_median": round(sorted(opened)[len(opened) // 2], 3),
                    "roll_back_megabytes_a_second": round(oldest_bytes / 1e6 / oldest_seconds, 1),
                    "rolled_back_megabytes": round(oldest_bytes / 1e6), "roll_back_seconds": round(oldest_seconds, 2),
                    "middle_megabytes": round(middle_bytes / 1e6), "middle_seconds": round(middle_seconds, 2),
                    "history_seconds": round(told.seconds, 1), "churn_megabytes": round(told.raw_bytes / 1e6),
                    "points": len(points),
                }
            )  # fmt: skip
            chain.remove()
            half_full(mirror, SIZE)
            for peer in (qcow2_overlays, btrfs_snapshots):
                if number == 0:
                    runs[-1] |= peer(ground, Kind(mirror, SIZE, PEER_POINTS, CHURN // POINTS, VIEWS))
            print(runs[-1], flush=True)
    return Result(
        "points", (Bound("view_seconds", 0.5), Bound("roll_back_megabytes_a_second", 400, False)), runs, equal,
        "what the peers do not do: their snapshots lie on the machine's own disk, and rolling back gives up what came later at "
        "once (a matter of names), ours keeps the way back; views are opened by the journal's library with the master target "
        "stopped, the worst of 20 counts; churn comes from a sender as a process server is (one hop).",
        machine, {"size_bytes": SIZE, "churn_bytes": CHURN, "peer": "qcow2 overlays, btrfs subvolume snapshots",
                  "peer_points": PEER_POINTS},
    )  # fmt: skip
