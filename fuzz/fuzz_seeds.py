"""Right inputs for the targets of :mod:`fuzz_targets`: made by the product's own writers, so they never grow old."""

from __future__ import annotations

import json
import tempfile
import typing
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any

import journal_driver as driver
import numpy as np

from failback.block import vmdk
from failback.journal import format as layout
from failback.journal.undo import pack_record
from failback.model import components, orders
from failback.process_server.spool import StreamState
from failback.protocol import messages as protocol

REPOSITORY = Path(__file__).resolve().parent.parent
GOLDEN = REPOSITORY / "tests/unit/golden"
INCARNATION = "22222222-3333-4444-5555-666666666666"
_BATCHES = range(1, 9)


def _frames() -> list[bytes]:
    return [bytes(driver.frame(driver.make_batch(5, number)).buffer) for number in _BATCHES]


def _golden(*names: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(GOLDEN.glob("*.frame")) if not names or path.stem.endswith(names)]


def links() -> list[bytes]:
    single = _golden()
    hello = next(frame for frame in single if frame[5] == 1)
    return [*single, hello + b"".join(_frames()[:2]), b"".join(single)]


def items() -> list[bytes]:
    return [*_frames(), *_golden("batch", "digests")]


def redo() -> list[bytes]:
    header = layout.pack_file_header(
        layout.FileHeader(layout.REDO_FILE_MAGIC, driver.MACHINE, INCARNATION, 1, driver.START_NS)
    )
    records = [layout.pack_redo_record(number, len(frame)) + frame for number, frame in enumerate(_frames(), 1)]
    return [header, header + b"".join(records[:1]), header + b"".join(records[:4])]


def undo() -> list[bytes]:
    header = layout.pack_file_header(layout.FileHeader(layout.UNDO_FILE_MAGIC, driver.MACHINE, INCARNATION, 1, 0))
    ids = np.array([3, 4, 9], np.int64)
    text = np.full((3, 4096), 7, np.uint8)
    text[1] = 0
    noise = np.random.default_rng(1).integers(0, 256, (3, 4096), np.uint8)
    packed = [b"".join(pack_record(disk, ids, content, 1)[0]) for disk, content in ((0, text), (1, noise))]
    return [header, header + packed[0], header + b"".join(packed)]


def spools() -> list[bytes]:
    state = json.dumps(
        {"machine_id": driver.MACHINE, "epoch": 1, "disks": [], "incarnation": INCARNATION, "landed_sequence": 1}
    ).encode()
    segment = b"".join(_frames()[:4])
    return [bytes(2) + segment, len(state).to_bytes(2, "little") + state + segment]


def make_journal(folder: Path) -> None:
    """A whole journal with points, gaps and redo that is not applied yet, and its disks."""
    journal, devices = driver.open_world(folder, 5)
    journal.start(devices, lambda _reply: None)
    journal.begin_epoch(1)
    for number in range(1, 31):
        journal.append(driver.frame(driver.make_batch(5, number)))
        journal.sync()
        if number <= 25:
            journal.apply_step()
    journal.stop()
    journal.close()
    for device in devices.values():
        device.close()


def catalogue(template: Path) -> list[bytes]:
    return [(template / "journal/catalogue.sqlite").read_bytes()]


def catalogue_changes() -> list[bytes]:
    facts = ("machine_id", "incarnation", "disks", "state", "epoch", "applied", "after_pass", "format", "damage",
             "rollback_phase", "rollback_destination")  # fmt: skip
    values: tuple[Any, ...] = (
        "",
        "null",
        "[]",
        "{}",
        "-1",
        '"x"',
        "1e400",
        "9" * 30,
        "[{}]",
        '{"ordinal": -5}',
        "nonsense",
    )
    changes = [[["facts", "value", fact, value]] for fact in facts for value in values]
    for table, column in (
        ("points", "kind"), ("points", "ordinal"), ("points", "point_id"), ("points", "wall_ns"), ("intervals", "file"),
        ("intervals", "first_ordinal"), ("undo_files", "size_bytes"), ("undo_files", "records"), ("gaps", "cause"),
        ("marks", "ordinal"), ("replies", "differing"),
    ):  # fmt: skip
        rows: tuple[Any, ...] = ("undo/000000000001.undo",) if table == "undo_files" else (1, 2, 3)
        for value in ("nonsense", -1, 1 << 62, None, "../../escaped", 1.5):
            changes.append([[table, column, row, value] for row in rows])
    return [json.dumps(change).encode() for change in changes]


RECORD_KINDS: tuple[type[Any], ...] = (
    components.Heartbeat, components.HeartbeatReply, components.Enrolment, components.Enrolled,
    components.MobilityStatus, components.ProcessServerStatus, components.MasterTargetStatus,
    components.MobilityAssignment, components.ProcessServerAssignment, components.MasterTargetAssignment,
    orders.AttachReplica, orders.PreparePoint, orders.Probe, orders.ProbeResult, orders.ReplicaOrder,
    protocol.Hello, protocol.Welcome, protocol.Refusal, StreamState,
)  # fmt: skip


def messages() -> list[bytes]:
    return [bytes([index]) + json.dumps(_example(kind)).encode() for index, kind in enumerate(RECORD_KINDS)]


def _example(kind: Any) -> Any:
    """A right value of a field's type."""
    kind = getattr(kind, "__supertype__", kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, UnionType):
        return _example(arguments[0])
    if origin is tuple:
        return [_example(arguments[0])]
    if origin is dict:
        return {"key": _example(arguments[1])}
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return {each.name: _example(hints[each.name]) for each in fields(kind) if each.init and each.default is MISSING}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next(iter(kind)).value
    return {str: "text", int: 7, float: 1.5, bool: True, Path: "/a/path"}.get(kind, {})


def configurations() -> list[bytes]:
    samples = [path.read_bytes() for path in sorted((REPOSITORY / "deploy").glob("*.toml"))]
    return [*samples, b'server = "https://x"\nca_file = "/a"\ntoken_file = "/b"\n']


def stored() -> list[bytes]:
    values: tuple[Any, ...] = (
        {"component_id": "c", "role": "mobility"}, [], None, {"component_id": 1, "role": []},
        {"boot_id": "b", "epoch": 1, "lease_marks": ["m"]}, {"incarnation": "i", "epoch": 1, "interval_id": 2, "ordinal": 3},
    )  # fmt: skip
    return [json.dumps(value).encode() for value in values]


def texts() -> list[bytes]:
    with tempfile.TemporaryDirectory() as place:
        place_of = Path(place)
        vmdk.create(place_of / "d.vmdk", place_of / "d-flat.vmdk", "d-flat.vmdk", 1 << 20)
        descriptor = (place_of / "d.vmdk").read_bytes()
    domain = b"""<domain type='kvm'><name>n</name><uuid>11111111-2222-3333-4444-555555555555</uuid><memory unit='KiB'>1</memory>
<devices><disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/a'/><target dev='vda' bus='virtio'/>
<serial>s</serial></disk></devices></domain>"""
    mounts = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
    return [descriptor, domain, mounts, b"/dev/vda1 / ext4 rw 0 0\n", b"jobStatus eq 'Failed' and itemName eq 'a'"]
