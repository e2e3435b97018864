"""Disk image files through ``qemu-img``: size, layers over them, commit of a layer while no machine uses it.

Formats are always named, never probed: a guest can write a qcow2 header into its raw disk and make a probing host read
any file of it. All calls block and may be repeated.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from failback.errors import FabricError
from failback.fabric.kvm.xml import FLAT_SUFFIX

_TIMEOUT_SECONDS = 60
_COMMIT_TIMEOUT_SECONDS = 24 * 3600


def virtual_size_bytes(path: Path, driver: str) -> int:
    """What a guest sees as the disk's size. 0 when the file is missing or cannot be read as ``driver``."""
    if not path.exists():
        return 0
    if driver == "raw" and path.is_file():
        return path.stat().st_size
    try:
        text = _qemu_img("info", "--force-share", "--output=json", "-f", driver, str(path))
    except FabricError:
        return 0
    return int(json.loads(text)["virtual-size"])


def backing(path: Path, driver: str) -> tuple[Path, str]:
    """File and format to put a layer over: the extent for a flat VMDK, so that QEMU reads and writes plain bytes."""
    if driver == "vmdk" and not path.name.endswith(FLAT_SUFFIX):
        extent = path.with_name(path.stem + FLAT_SUFFIX)
        if extent.exists():
            return extent, "raw"
    return path, driver


def descriptor_of(extent: Path) -> Path | None:
    """The descriptor beside a flat VMDK's extent (``NAME-flat.vmdk`` -> ``NAME.vmdk``); None when it is none."""
    if not extent.name.endswith(FLAT_SUFFIX):
        return None
    return extent.with_name(extent.name.removesuffix(FLAT_SUFFIX) + ".vmdk")


def allocated_bytes(path: Path) -> int:
    """Bytes that the file takes on its file system; 0 when it is not there."""
    return path.stat().st_blocks * 512 if path.exists() else 0


def space_bytes(directory: Path) -> tuple[int, int]:
    """(capacity, free) of the file system that holds ``directory``."""
    usage = shutil.disk_usage(directory)
    return usage.total, usage.free


def create_layer(layer: Path, base: Path, base_driver: str, size_bytes: int) -> None:
    """Make an empty qcow2 over ``base``; a file of that name left by a crashed attempt is made anew."""
    layer.unlink(missing_ok=True)
    _qemu_img("create", "-q", "-f", "qcow2", "-b", str(base), "-F", base_driver, str(layer), str(size_bytes))


def commit(layer: Path) -> None:
    """Write a layer's content down into its base. Nobody may have either open."""
    _qemu_img("commit", "-q", "-f", "qcow2", str(layer), timeout=_COMMIT_TIMEOUT_SECONDS)


def _qemu_img(*arguments: str, timeout: int = _TIMEOUT_SECONDS) -> str:
    command = ["qemu-img", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, umask=0o077)
    except FileNotFoundError:
        raise FabricError("qemu-img is not installed", remedy="install the package qemu-utils") from None
    except subprocess.TimeoutExpired:
        raise FabricError(f"qemu-img {arguments[0]} took more than {timeout} s", retryable=True) from None
    if done.returncode != 0:
        sentence = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}"
        locked = "lock" in sentence
        raise FabricError(
            f"qemu-img {arguments[0]} failed: {sentence}",
            possible_causes="another program has the disk open" if locked else "",
            remedy="release the disk there first" if locked else "",
            retryable=locked,
        )
    return done.stdout
