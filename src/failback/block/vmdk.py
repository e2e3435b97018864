"""Flat VMDK (monolithicFlat): a text descriptor ``x.vmdk`` and its extent ``x-flat.vmdk``, which is a raw image.

The descriptor's lines that matter: ``createType="monolithicFlat"`` (or ``vmfs``) and one extent line
``RW <sectors> FLAT "<file>" 0`` (``VMFS`` on ESXi). The file name is relative to the descriptor (VMware Virtual Disk
Format 1.1). Descriptors with several extents are refused with the reason.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from failback.block.raw import create_sparse, storage_error, sync_directory
from failback.errors import NotSupportedError, StorageError

_EXTENT = re.compile(r'^(RW|RDONLY|NOACCESS)\s+(\d+)\s+(\w+)(?:\s+"([^"]*)"(?:\s+(\d+))?)?\s*$')
_MAXIMUM_DESCRIPTOR_BYTES = 65536
SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class FlatDescriptor:
    extent_name: str
    size_bytes: int


def parse(text: str, name: str) -> FlatDescriptor:
    """The one flat extent of a descriptor. Raises NotSupportedError (another kind) or StorageError (no descriptor)."""
    if not text.lstrip().startswith("# Disk DescriptorFile"):
        raise StorageError(f"{name} is not a VMDK descriptor", remedy="name the .vmdk descriptor, not its -flat extent")
    extents = [match for line in text.splitlines() if (match := _EXTENT.match(line.strip()))]
    if len(extents) != 1 or extents[0][3] not in ("FLAT", "VMFS") or int(extents[0][5] or 0) != 0:
        kinds = ", ".join(match[3] for match in extents) or "none"
        raise NotSupportedError(
            f"{name}: one flat extent is needed, found: {kinds}",
            remedy="convert the disk: qemu-img convert -O vmdk -o subformat=monolithicFlat",
        )
    return FlatDescriptor(extents[0][4], int(extents[0][2]) * SECTOR_BYTES)


def read_descriptor(path: Path) -> FlatDescriptor:
    """Read and parse the descriptor file."""
    try:
        with path.open("rb") as stream:
            text = stream.read(_MAXIMUM_DESCRIPTOR_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise storage_error(f"cannot read {path}", error) from error
    return parse(text, str(path))


def create(descriptor: Path, extent: Path, extent_name: str, size_bytes: int) -> None:
    """Create a sparse extent and then its descriptor; a crash in between leaves an extent that a repetition takes."""
    if not extent.exists():
        create_sparse(extent, size_bytes)
    temporary = descriptor.with_name(descriptor.name + ".new")
    temporary.write_text(render(extent_name, size_bytes), encoding="ascii")
    with temporary.open("rb+") as stream:
        os.fsync(stream.fileno())
    temporary.rename(descriptor)
    sync_directory(descriptor.parent)


def grow(descriptor: Path, extent: Path, size_bytes: int) -> None:
    """Make both larger, the extent first: a crash in between is repeated. The descriptor keeps every other line."""
    os.truncate(extent, size_bytes)
    text = descriptor.read_text(encoding="utf-8")
    lines = []
    for line in text.splitlines():
        match = _EXTENT.match(line.strip())
        lines.append(line.replace(match[2], str(size_bytes // SECTOR_BYTES), 1) if match else line)
    temporary = descriptor.with_name(descriptor.name + ".new")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    status = descriptor.stat()
    os.chown(temporary, status.st_uid, status.st_gid)
    temporary.chmod(status.st_mode & 0o7777)
    with temporary.open("rb+") as stream:
        os.fsync(stream.fileno())
    temporary.rename(descriptor)
    sync_directory(descriptor.parent)


def render(extent_name: str, size_bytes: int) -> str:
    """The text of a monolithicFlat descriptor for an IDE-less (lsilogic) disk."""
    cylinders = min(size_bytes // (255 * 63 * SECTOR_BYTES), 16383)
    return f"""# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="monolithicFlat"

# Extent description
RW {size_bytes // SECTOR_BYTES} FLAT "{extent_name}" 0

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "{cylinders}"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.adapterType = "lsilogic"
"""
