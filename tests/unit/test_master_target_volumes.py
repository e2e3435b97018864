"""Mounts are parsed as the kernel writes them, and a path belongs to the longest mount above it."""

from __future__ import annotations

from pathlib import Path

from failback.master_target.volumes import mount_of, parse_mounts

MOUNTINFO = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 8:1 / /mnt/retention ro,relatime shared:2 - xfs /dev/sda1 rw
31 22 8:2 / /mnt/retention\\040two rw,relatime - vfat /dev/sdb1 rw,fmask=0022
32 22 8:3 / /mnt/old rw - btrfs /dev/sdc ro
33 22 8:4 / /mnt/bücher rw - xfs /dev/sdd rw
a line that is cut
"""


def test_parse_and_find() -> None:
    mounts = parse_mounts(MOUNTINFO)
    retention = mount_of(Path("/mnt/retention/failback"), mounts)
    assert retention is not None and retention.filesystem == "xfs" and retention.read_only
    second = mount_of(Path("/mnt/retention two"), mounts)
    assert second is not None and second.filesystem == "vfat" and not second.read_only
    old = mount_of(Path("/mnt/old"), mounts)
    assert old is not None and old.read_only
    accented = mount_of(Path("/mnt/bücher/failback"), mounts)
    assert accented is not None and accented.filesystem == "xfs"
    root = mount_of(Path("/srv"), mounts)
    assert root is not None and root.filesystem == "ext4"
