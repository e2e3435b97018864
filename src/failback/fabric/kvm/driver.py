"""The KVM fabric: inventory, power and disposable layers of a libvirt host.

Every call opens its own connection, so that a restarted libvirtd is met by the next call and threads share nothing.
Creating calls are find-or-create by the caller's key: a layer's file names carry a digest of it, and the definition's
metadata names it (see ``xml``).

Layers (D21): a qcow2 over each disk. ``merge`` writes them down with an active block commit and a pivot while the
machine runs, with ``qemu-img commit`` while it is off; both may be killed anywhere and called again. As long as a disk
is a replica its file lies under another name (D22), so this driver reports it as missing and libvirt cannot start it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libvirt

from failback.errors import ConflictError, FabricError, NotFoundError
from failback.fabric.interfaces import Datastore, FabricDisk, FabricMachine, PowerState, Progress
from failback.fabric.kvm import images, xml
from failback.runtime import faults

_POLL_SECONDS = 0.2
_MERGE_STALL_SECONDS = 300.0


def _silent(_context: object, _error: object) -> None:
    """libvirt prints every error to standard error unless told otherwise; they reach the caller as exceptions."""


@dataclass(frozen=True, slots=True)
class KvmFabric:
    """``datastore_paths`` adds plain directories (name -> path) to the host's storage pools."""

    uri: str
    datastore_paths: dict[str, Path] = field(default_factory=dict)

    # --- Inventory

    def probe(self) -> str:
        try:
            with self._connection() as connection:
                connection.getLibVersion()
        except FabricError as error:
            return error.message
        return ""

    def machines(self) -> tuple[FabricMachine, ...]:
        with self._connection() as connection:
            return tuple(_machine(domain) for domain in connection.listAllDomains())

    def machine(self, name_or_id: str) -> FabricMachine:
        with self._connection() as connection:
            return _machine(_lookup(connection, name_or_id))

    def datastores(self) -> tuple[Datastore, ...]:
        found: dict[str, Datastore] = {}
        with self._connection() as connection:
            for pool in connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
                path = xml.pool_path(pool.XMLDesc())
                _, capacity, _, free = pool.info()
                found[pool.name()] = Datastore(pool.name(), path, "pool", capacity, free)
        for name, directory in self.datastore_paths.items():
            if directory.is_dir():
                capacity, free = images.space_bytes(directory)
                found[name] = Datastore(name, str(directory), "directory", capacity, free)
        return tuple(found.values())

    # --- Power

    def power_state(self, fabric_id: str) -> PowerState:
        with self._connection() as connection:
            return _power(_lookup(connection, fabric_id))

    def power_on(self, fabric_id: str) -> None:
        with self._connection() as connection:
            domain = _lookup(connection, fabric_id)
            if not domain.isActive():
                domain.create()

    def power_off(self, fabric_id: str) -> None:
        with self._connection() as connection:
            domain = _lookup(connection, fabric_id)
            if not domain.isActive():
                return
            try:
                domain.destroy()
            except libvirt.libvirtError:
                if domain.isActive():
                    raise

    # --- AddsDisks

    def add_disk(self, fabric_id: str, path: str, file_format: str, serial: str) -> str:
        with self._connection() as connection:
            domain = _lookup(connection, fabric_id)
            text = _definition_text(domain)
            changed, target = xml.with_disk(text, path, file_format, serial)
            if changed != text:
                _must_be_off(domain, "adding a disk")
                connection.defineXML(changed)
            return target

    # --- DisposableLayer

    def layered(self, fabric_id: str, key: str) -> bool:
        with self._connection() as connection:
            layer = _definition(_lookup(connection, fabric_id)).layer
            return layer is not None and layer.key == key

    def lay(self, fabric_id: str, key: str) -> None:
        with self._connection() as connection:
            domain = _lookup(connection, fabric_id)
            text = _definition_text(domain)
            definition = xml.parse(text)
            if definition.layer is not None:
                _same_key(definition, key)
                return
            _must_be_off(domain, "laying a disposable layer")
            layer = _plan_layer(definition, key)
            for disk in layer.disks:
                base, driver = images.backing(Path(disk.original), disk.driver)
                size = images.virtual_size_bytes(base, driver)
                if size == 0:
                    raise FabricError(
                        f"the disk {disk.original} of {definition.name} is missing",
                        possible_causes="it is still a replica, or its datastore is not mounted",
                        remedy="release the replica, or mount the datastore",
                    )
                images.create_layer(Path(disk.layer), base, driver, size)
            faults.point("kvm.lay.before_define")
            connection.defineXML(xml.on_layer(text, layer))

    def merge(self, fabric_id: str, key: str, progress: Progress) -> None:
        with self._connection() as connection:
            domain = _lookup(connection, fabric_id)
            text = _definition_text(domain)
            definition = xml.parse(text)
            layer = definition.layer
            if layer is None:
                return
            _same_key(definition, key)
            if domain.isActive():
                _merge_running(domain, layer, progress)
            else:
                _merge_off(definition, layer, progress)
            faults.point("kvm.merge.before_define")
            connection.defineXML(xml.off_layer(text, layer))
            _forget_live(domain)
            _drop(layer)

    def discard(self, fabric_id: str, key: str) -> None:
        with self._connection() as connection:
            domain = _lookup(connection, fabric_id)
            text = _definition_text(domain)
            definition = xml.parse(text)
            if definition.layer is None:
                return
            _same_key(definition, key)
            _must_be_off(domain, "discarding its disposable layer")
            connection.defineXML(xml.off_layer(text, definition.layer))
            faults.point("kvm.discard.before_delete")
            _drop(definition.layer)

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        """A connection for one call; libvirt's errors leave it as FabricError or NotFoundError."""
        libvirt.registerErrorHandler(_silent, None)
        try:
            connection = libvirt.open(self.uri)
        except libvirt.libvirtError as error:
            raise FabricError(
                f"libvirt at {self.uri} does not answer: {error}",
                possible_causes="libvirtd is not running, or this user may not use its socket",
                remedy="start libvirtd (without systemd: virtlogd -d; libvirtd -d)",
                retryable=True,
            ) from error
        try:
            yield connection
        except libvirt.libvirtError as error:
            raise FabricError(f"libvirt refused: {error}", code="HypervisorRefused") from error
        finally:
            connection.close()


def _lookup(connection: Any, name_or_id: str) -> Any:
    try:
        return connection.lookupByUUIDString(name_or_id)
    except libvirt.libvirtError:
        pass  # no such UUID, or not a UUID at all: it may be a name
    try:
        return connection.lookupByName(name_or_id)
    except libvirt.libvirtError as error:
        raise NotFoundError(
            f"no virtual machine is called {name_or_id!r} on {connection.getURI()}",
            remedy="list them with virsh list --all",
        ) from error


def _definition_text(domain: Any) -> str:
    """The stored definition (of a running transient domain: the live one)."""
    flags = libvirt.VIR_DOMAIN_XML_SECURE
    if domain.isPersistent():
        flags |= libvirt.VIR_DOMAIN_XML_INACTIVE
    return str(domain.XMLDesc(flags))


def _definition(domain: Any) -> xml.Domain:
    return xml.parse(_definition_text(domain))


def _power(domain: Any) -> PowerState:
    state, _reason = domain.state()
    if state == libvirt.VIR_DOMAIN_NOSTATE:
        return PowerState.UNKNOWN
    return PowerState.ON if domain.isActive() else PowerState.OFF


def _machine(domain: Any) -> FabricMachine:
    definition = _definition(domain)
    originals = {disk.target: disk for disk in definition.layer.disks} if definition.layer else {}
    disks: list[FabricDisk] = []
    for index, disk in enumerate(definition.disks):
        original = originals.get(disk.target)
        path, driver = (original.original, original.driver) if original else (disk.source, disk.driver)
        disks.append(_disk(index, disk, path, driver))
    return FabricMachine(
        fabric_id=definition.uuid,
        name=definition.name,
        hardware_id=definition.hardware_id,
        power=_power(domain),
        firmware=definition.firmware,
        disks=tuple(disks),
    )


def _disk(index: int, disk: xml.DomainDisk, path: str, driver: str) -> FabricDisk:
    """A flat VMDK is named by its descriptor, whether QEMU was given that or the extent."""
    size = images.virtual_size_bytes(Path(path), driver) if path else 0
    file_format = driver
    descriptor = images.descriptor_of(Path(path))
    if driver == "raw" and descriptor is not None:
        path, file_format = str(descriptor), "vmdk-flat"
    elif driver == "vmdk":
        file_format = "vmdk-flat"
        base, base_driver = images.backing(Path(path), driver)
        size = size or images.virtual_size_bytes(base, base_driver)
    return FabricDisk(index, disk.target, disk.serial, path, file_format, size, missing=size == 0)


def _plan_layer(definition: xml.Domain, key: str) -> xml.Layer:
    suffix = hashlib.sha256(key.encode()).hexdigest()[:12]
    disks = tuple(
        xml.LayerDisk(disk.target, disk.source, disk.driver, f"{disk.source}.{suffix}.layer")
        for disk in definition.disks
        if disk.source
    )
    if not disks:
        raise FabricError(f"{definition.name} has no writable disk to lay a layer over")
    block = [disk.original for disk in disks if disk.original.startswith("/dev/")]
    if block:
        raise FabricError(
            f"{block[0]} is a block device: there is no directory for a layer beside it",
            code="NotSupported",
            remedy="keep the machine's disks as files on a datastore",
        )
    return xml.Layer(key, disks)


def _same_key(definition: xml.Domain, key: str) -> None:
    if definition.layer is not None and definition.layer.key != key:
        raise ConflictError(
            f"{definition.name} runs on a layer of another operation ({definition.layer.key})",
            remedy="commit or cancel that failback first",
        )


def _must_be_off(domain: Any, what: str) -> None:
    if domain.isActive():
        raise ConflictError(f"{domain.name()} is running; {what} needs it off", remedy="power it off")


def _merge_off(definition: xml.Domain, layer: xml.Layer, progress: Progress) -> None:
    """Commit the layers that the stored definition still uses.

    A pivot rewrites the stored definition too: a disk that is back on its own file was merged while the machine ran, and
    may have been written since. Its layer is stale and must not be committed again.
    """
    sources = {disk.target: disk.source for disk in definition.disks}
    waiting = [Path(disk.layer) for disk in layer.disks if sources.get(disk.target) == disk.layer]
    total = sum(images.allocated_bytes(path) for path in waiting)
    done = 0
    progress(done, total)
    for path in waiting:
        size = images.allocated_bytes(path)
        images.commit(path)
        done += size
        progress(done, total)


def _merge_running(domain: Any, layer: xml.Layer, progress: Progress) -> None:
    live = {disk.target: disk.source for disk in xml.parse(domain.XMLDesc()).disks}
    waiting = [disk for disk in layer.disks if live.get(disk.target) == disk.layer]
    for disk in waiting:
        if not domain.blockJobInfo(disk.target):
            flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
            domain.blockCommit(disk.target, None, None, 0, flags)
    figures = {disk.target: (0, 0) for disk in waiting}
    for disk in waiting:
        _finish_commit(domain, disk.target, waiting, figures, progress)


def _finish_commit(
    domain: Any, target: str, waiting: Sequence[xml.LayerDisk], figures: dict[str, tuple[int, int]], progress: Progress
) -> None:
    """Wait until the disk's commit caught up with the guest, then pivot. Raises FabricError when it stops moving."""
    moved_at = time.monotonic()
    while True:
        before = dict(figures)
        for disk in waiting:
            info = domain.blockJobInfo(disk.target)
            if info:
                figures[disk.target] = (int(info["cur"]), int(info["end"]))
        progress(sum(done for done, _ in figures.values()), sum(total for _, total in figures.values()))
        done, total = figures[target]
        if xml.mirror_ready(domain.XMLDesc(), target):
            faults.point("kvm.merge.before_pivot")
            domain.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
            figures[target] = (total, total)
            return
        if not domain.isActive() or not domain.blockJobInfo(target):
            raise FabricError(
                f"the block commit of {target} ended early at {done} of {total} bytes",
                possible_causes="the machine was powered off, or its datastore is full",
                remedy="commit again",
                retryable=True,
            )
        if figures != before:
            moved_at = time.monotonic()
        elif time.monotonic() - moved_at > _MERGE_STALL_SECONDS:
            raise FabricError(f"the block commit of {target} stands still", remedy="commit again", retryable=True)
        time.sleep(_POLL_SECONDS)


def _forget_live(domain: Any) -> None:
    """Remove the layer from the running domain's metadata too (the stored definition is already clean)."""
    if not domain.isActive():
        return
    if xml.parse(domain.XMLDesc()).layer is not None:
        kind = libvirt.VIR_DOMAIN_METADATA_ELEMENT
        domain.setMetadata(kind, None, None, xml.LAYER_NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def _drop(layer: xml.Layer) -> None:
    for disk in layer.disks:
        Path(disk.layer).unlink(missing_ok=True)
