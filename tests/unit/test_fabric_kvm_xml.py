"""Domain definitions: what is read from them, and that a layer goes on and comes off without a trace."""

from __future__ import annotations

import pytest

from failback.errors import FabricError
from failback.fabric.kvm import xml

UUID = "6F1C0000-0000-4000-8000-00000000000A"
DEFINITION = f"""<domain type='kvm'><name>ledger</name><uuid>{UUID}</uuid>
<metadata><other:x xmlns:other="https://other.example/1">kept</other:x></metadata>
<os firmware='efi'><type>hvm</type></os>
<devices>
<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none' discard='unmap'/>
<source file='/pool/a-flat.vmdk'/><target dev='vda' bus='virtio'/><serial>one</serial></disk>
<disk type='block' device='disk'><source dev='/dev/vg/b'/><target dev='vdb' bus='virtio'/></disk>
<disk type='file' device='cdrom'><source file='/pool/x.iso'/><target dev='sda'/><readonly/></disk>
<disk type='file' device='disk'><source file='/pool/r'/><target dev='vdc'/><readonly/></disk>
</devices></domain>"""
LAYER = xml.Layer("job-7", (xml.LayerDisk("vda", "/pool/a-flat.vmdk", "raw", "/pool/a.layer"),))


def test_definition_is_read() -> None:
    domain = xml.parse(DEFINITION)
    assert (domain.uuid, domain.hardware_id, domain.name, domain.firmware) == (
        UUID.lower(),
        UUID.lower(),
        "ledger",
        "uefi",
    )
    assert domain.disks == (
        xml.DomainDisk("vda", "one", "/pool/a-flat.vmdk", "raw", False),
        xml.DomainDisk("vdb", "", "/dev/vg/b", "raw", False),
    )
    assert domain.layer is None


def test_hardware_id_may_differ_from_the_domains_uuid() -> None:
    other = "11111111-1111-4111-8111-111111111111"
    changed = DEFINITION.replace("<metadata>", f"<hwuuid>{other}</hwuuid><metadata>")
    assert xml.parse(changed).hardware_id == other


def test_layer_goes_on_and_comes_off_without_a_trace() -> None:
    layered = xml.on_layer(DEFINITION, LAYER)
    domain = xml.parse(layered)
    assert domain.layer == LAYER
    assert (domain.disks[0].source, domain.disks[0].driver) == ("/pool/a.layer", "qcow2")
    assert domain.disks[1].source == "/dev/vg/b"
    assert xml.on_layer(layered, LAYER) == layered
    back = xml.off_layer(layered, LAYER)
    assert xml.parse(back) == xml.parse(DEFINITION)
    assert 'discard="unmap"' in back
    assert "other.example" in back
    assert xml.LAYER_NAMESPACE not in back


def test_live_definition_drops_its_backing_chain_and_mirror() -> None:
    chain = "<backingStore type='file'><source file='/pool/base'/></backingStore><mirror type='file' ready='yes'/>"
    live = DEFINITION.replace("<target dev='vda'", f"{chain}<target dev='vda'")
    assert xml.mirror_ready(live, "vda")
    assert not xml.mirror_ready(live, "vdb")
    layered = xml.on_layer(live, LAYER)
    assert "backingStore" not in layered
    assert "mirror" not in layered


def test_layer_over_a_disk_that_is_gone_is_refused() -> None:
    gone = xml.Layer("k", (xml.LayerDisk("vdz", "/pool/z", "raw", "/pool/z.layer"),))
    with pytest.raises(FabricError, match="vdz"):
        xml.off_layer(DEFINITION, gone)


@pytest.mark.parametrize("text", ["", "<domain", "<pool/>"])
def test_what_is_no_definition_is_refused(text: str) -> None:
    with pytest.raises(FabricError):
        xml.parse(text)
