"""Flat VMDK descriptors: those of QEMU and ESXi are read, others refused with the reason."""

from __future__ import annotations

import pytest

from failback.block import vmdk
from failback.errors import NotSupportedError, StorageError

ESXI = """# Disk DescriptorFile
version=3
encoding="UTF-8"
CID=b0b0b0b0
parentCID=ffffffff
createType="vmfs"

# Extent description
RW 83886080 VMFS "ledger-flat.vmdk"

ddb.adapterType = "lsilogic"
"""


def test_own_and_esxi_descriptors() -> None:
    assert vmdk.parse(vmdk.render("x-flat.vmdk", 1 << 30), "x") == vmdk.FlatDescriptor("x-flat.vmdk", 1 << 30)
    assert vmdk.parse(ESXI, "x") == vmdk.FlatDescriptor("ledger-flat.vmdk", 40 << 30)


def test_others_are_refused() -> None:
    with pytest.raises(NotSupportedError, match="SPARSE"):
        vmdk.parse(ESXI.replace("VMFS", "SPARSE"), "x")
    split = ESXI.replace('"ledger-flat.vmdk"\n', '"a-f001.vmdk"\nRW 100 VMFS "a-f002.vmdk"\n')
    with pytest.raises(NotSupportedError, match="one flat extent"):
        vmdk.parse(split, "x")
    with pytest.raises(StorageError, match="descriptor"):
        vmdk.parse("KDMV", "x")
