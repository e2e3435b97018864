"""Domain definitions as values: what disks a domain has, and the same definition with other disk sources (pure).

A layered domain (D21) remembers its own disks in its definition's metadata, in the same redefinition that points it at
the layers, so that no crash can leave a domain on layers that nobody knows how to undo::

    <failback:layer xmlns:failback="https://failback.dev/kvm/layer/1" key="...">
      <failback:disk target="vda" original="/pool/ledger-flat.vmdk" format="raw" layer="/pool/ledger.<key>.layer"/>
    </failback:layer>

A flat VMDK may be given to QEMU as its descriptor (driver type ``vmdk``) or as its extent (driver type ``raw``, file
``NAME-flat.vmdk``); libvirt relabels only the file that it is given, so the extent is the better choice (D22's notes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_lowercase
from xml.etree import ElementTree

from failback.errors import FabricError

LAYER_NAMESPACE = "https://failback.dev/kvm/layer/1"
_LAYER = f"{{{LAYER_NAMESPACE}}}layer"
_LAYER_DISK = f"{{{LAYER_NAMESPACE}}}disk"
FLAT_SUFFIX = "-flat.vmdk"

ElementTree.register_namespace("failback", LAYER_NAMESPACE)


@dataclass(frozen=True, slots=True)
class DomainDisk:
    """One disk as the definition names it. ``driver`` is QEMU's format name; ``source`` is empty for an empty drive."""

    target: str
    serial: str
    source: str
    driver: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class LayerDisk:
    target: str
    original: str
    driver: str
    """QEMU format of ``original``."""
    layer: str


@dataclass(frozen=True, slots=True)
class Layer:
    key: str
    disks: tuple[LayerDisk, ...]


@dataclass(frozen=True, slots=True)
class Domain:
    uuid: str
    name: str
    hardware_id: str
    firmware: str
    disks: tuple[DomainDisk, ...]
    layer: Layer | None


def parse(text: str) -> Domain:
    """Read a definition as ``virsh dumpxml`` prints it. CD-ROMs, floppies and read-only disks are left out."""
    root = _root(text)
    uuid = root.findtext("uuid", "").strip().lower()
    return Domain(
        uuid=uuid,
        name=root.findtext("name", "").strip(),
        hardware_id=(root.findtext("hwuuid") or uuid).strip().lower(),
        firmware=_firmware(root),
        disks=tuple(disk for disk in map(_disk, _disk_elements(root)) if not disk.read_only),
        layer=_layer(root),
    )


def on_layer(text: str, layer: Layer) -> str:
    """The definition with each of the layer's disks on its overlay, and the layer remembered in its metadata."""
    root = _root(text)
    _point_at(root, {disk.target: (disk.layer, "qcow2") for disk in layer.disks})
    _forget(root)
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ElementTree.SubElement(root, "metadata")
    element = ElementTree.SubElement(metadata, _LAYER, {"key": layer.key})
    for disk in layer.disks:
        facts = {"target": disk.target, "original": disk.original, "format": disk.driver, "layer": disk.layer}
        ElementTree.SubElement(element, _LAYER_DISK, facts)
    return ElementTree.tostring(root, encoding="unicode")


def off_layer(text: str, layer: Layer) -> str:
    """The definition with each of the layer's disks on its own file again and no layer in its metadata."""
    root = _root(text)
    _point_at(root, {disk.target: (disk.original, disk.driver) for disk in layer.disks})
    _forget(root)
    return ElementTree.tostring(root, encoding="unicode")


def with_disk(text: str, path: str, driver: str, serial: str) -> tuple[str, str]:
    """The definition with a file as a further disk, and its target: on the bus of the first disk, under the next free name. A
    definition that has the file already stays as it is."""
    root = _root(text)
    disks = _disk_elements(root)
    for known in map(_disk, disks):
        if known.source == path:
            return text, known.target
    first = disks[0].find("target") if disks else None
    bus = "virtio" if first is None else first.get("bus", "virtio")
    prefix = "vd" if first is None else first.get("dev", "vda")[:2]
    used = {target.get("dev") for target in root.findall("./devices/disk/target")}
    name = next((name for letter in ascii_lowercase if (name := prefix + letter) not in used), "")
    devices = root.find("devices")
    if not name or devices is None:
        raise FabricError("the machine's definition has no room for another disk", remedy="remove one that is not used")
    disk = ElementTree.Element("disk", {"type": "file", "device": "disk"})
    ElementTree.SubElement(disk, "driver", {"name": "qemu", "type": driver})
    ElementTree.SubElement(disk, "source", {"file": path})
    ElementTree.SubElement(disk, "target", {"dev": name, "bus": bus})
    if serial:
        ElementTree.SubElement(disk, "serial").text = serial
    place = list(devices).index(disks[-1]) + 1 if disks else len(devices)
    devices.insert(place, disk)
    return ElementTree.tostring(root, encoding="unicode"), name


def _root(text: str) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise FabricError(f"libvirt gave a domain definition that is not XML: {error}") from error
    if root.tag != "domain":
        raise FabricError(f"libvirt gave <{root.tag}> where a domain definition was expected")
    return root


def _disk_elements(root: ElementTree.Element) -> list[ElementTree.Element]:
    found = root.findall("./devices/disk")
    return [disk for disk in found if disk.get("device", "disk") == "disk" and disk.get("type") in ("file", "block")]


def _disk(element: ElementTree.Element) -> DomainDisk:
    source, driver, target = element.find("source"), element.find("driver"), element.find("target")
    path = "" if source is None else source.get("file") or source.get("dev") or ""
    return DomainDisk(
        target="" if target is None else target.get("dev", ""),
        serial=element.findtext("serial", "").strip(),
        source=path,
        driver="raw" if driver is None else driver.get("type", "raw"),
        read_only=element.find("readonly") is not None,
    )


def _firmware(root: ElementTree.Element) -> str:
    system = root.find("os")
    if system is None:
        return "bios"
    loader = system.find("loader")
    by_loader = loader is not None and loader.get("type") == "pflash"
    return "uefi" if system.get("firmware") == "efi" or by_loader else "bios"


def _layer(root: ElementTree.Element) -> Layer | None:
    element = root.find(f"./metadata/{_LAYER}")
    if element is None:
        return None
    disks = tuple(
        LayerDisk(disk.get("target", ""), disk.get("original", ""), disk.get("format", "raw"), disk.get("layer", ""))
        for disk in element.findall(_LAYER_DISK)
    )
    return Layer(element.get("key", ""), disks)


def _forget(root: ElementTree.Element) -> None:
    metadata = root.find("metadata")
    if metadata is None:
        return
    for element in metadata.findall(_LAYER):
        metadata.remove(element)
    if len(metadata) == 0:
        root.remove(metadata)


def _point_at(root: ElementTree.Element, sources: Mapping[str, tuple[str, str]]) -> None:
    """Give the disks named by target another file and format. Raises FabricError when one is not there."""
    left = dict(sources)
    for element in _disk_elements(root):
        target = element.find("target")
        wanted = left.pop("" if target is None else target.get("dev", ""), None)
        if wanted is None:
            continue
        path, driver_type = wanted
        block = driver_type == "raw" and path.startswith("/dev/")
        element.set("type", "block" if block else "file")
        for child in [child for child in element if child.tag in ("source", "backingStore", "mirror")]:
            element.remove(child)
        element.insert(0, ElementTree.Element("source", {"dev" if block else "file": path}))
        driver = element.find("driver")
        if driver is None:
            driver = ElementTree.Element("driver", {"name": "qemu"})
            element.insert(0, driver)
        driver.set("type", driver_type)
    if left:
        raise FabricError(f"the domain no longer has the disk {sorted(left)[0]}", remedy="define the disk again")


def mirror_ready(text: str, target: str) -> bool:
    """Whether the live definition says that the active commit of the disk has caught up and can pivot."""
    for element in _disk_elements(_root(text)):
        name = element.find("target")
        mirror = element.find("mirror")
        if name is not None and name.get("dev") == target and mirror is not None:
            return mirror.get("ready") == "yes"
    return False


def pool_path(text: str) -> str:
    """The directory of a storage pool's definition; empty for a pool without one."""
    return (ElementTree.fromstring(text).findtext("./target/path") or "").strip()
