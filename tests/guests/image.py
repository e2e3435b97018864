"""A small guest of another kernel: Debian 13's, with what the story needs, built once and cached.

It boots by kernel and initial RAM disk with a script of ours as its first process; our code comes on a disk of its own, so
that a change costs no new image.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

SUITE = "trixie"
PACKAGES = (
    "python3", "python3-xxhash", "python3-zstandard", "python3-cryptography", "linux-image-cloud-amd64", "initramfs-tools",
    "libbpf1", "e2fsprogs", "kmod", "util-linux", "mount", "fio", "lvm2", "mdadm", "cryptsetup-bin",
    "thin-provisioning-tools",
)  # fmt: skip
_HOOK = """#!/bin/sh
[ "$1" = prereqs ] && exit 0
. /usr/share/initramfs-tools/hook-functions
manual_add_modules virtio_pci virtio_blk ext4 crc32c_generic
"""
_INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1 LC_ALL=C
mount -t proc proc /proc 2>/dev/null; mount -t sysfs sys /sys 2>/dev/null; mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp; mount -t tmpfs run /run; mount -t bpf bpf /sys/fs/bpf
mkdir -p /run/code /run/lock /run/lvm /run/cryptsetup
tar -xf /dev/vdb -C /run/code
cd /run/code && PYTHONPATH=/run/code/src:/run/code timeout 800 python3 story.py
echo o > /proc/sysrq-trigger
sleep 60
"""
BUILD_SECONDS = 900


@dataclass(frozen=True)
class Guest:
    disk: Path
    kernel: Path
    initial_ram_disk: Path


def build(cache: Path) -> Guest:
    """Find or build it. Needs mmdebstrap, a Debian mirror and root."""
    key = hashlib.sha256("\n".join([SUITE, *PACKAGES, _HOOK, _INIT]).encode()).hexdigest()[:16]
    entry = cache / f"guest-{SUITE}-{key}"
    if not entry.exists():
        work = entry.with_name(entry.name + ".partial")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        _build(work)
        work.rename(entry)
    return Guest(entry / "system.raw", entry / "vmlinuz", entry / "initrd")


def _build(work: Path) -> None:
    hook = work / "hook"
    hook.write_text(_HOOK)
    root = work / "root"
    essential = f"""mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/etc/initramfs-tools/hooks"
        echo MODULES=list > "$1/etc/initramfs-tools/conf.d/lab"
        install -m 755 {hook} "$1/etc/initramfs-tools/hooks/lab" """
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "locale", "man", "info")]
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    mirror = os.environ.get("FAILBACK_LAB_MIRROR", "")
    command = [
        "mmdebstrap", "--variant=minbase", "--mode=root", f"--include={','.join(PACKAGES)}", *excluded,
        '--aptopt=Acquire::Languages "none"', '--aptopt=APT::Install-Recommends "false"', f"--essential-hook={essential}",
        *([f"--keyring={keyring}"] if keyring.exists() else []), SUITE, str(root), *([mirror] if mirror else []),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=BUILD_SECONDS)
    init = root / "sbin/failback-init"
    init.write_text(_INIT)
    init.chmod(0o755)
    for name, pattern in (("vmlinuz", "vmlinuz-*"), ("initrd", "initrd.img-*")):
        shutil.copy(next(iter(sorted((root / "boot").glob(pattern)))), work / name)
    disk = work / "system.raw"
    disk.touch()
    os.truncate(disk, 1 << 30)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-F", "-d", str(root), str(disk)], check=True, timeout=300)
    shutil.rmtree(root)


def code_disk(path: Path, checkout: Path) -> Path:
    """Our packages and the story as a tar file that the guest reads from a disk."""
    with tarfile.open(path, "w") as tar:
        tar.add(checkout / "src/failback", "src/failback", filter=_without_caches)
        tar.add(checkout / "tests/integration/capture_disk.py", "capture_disk.py")
        tar.add(checkout / "tests/guests/story.py", "story.py")
    os.truncate(path, (path.stat().st_size + (1 << 20)) // (1 << 20) * (1 << 20))
    return path


def _without_caches(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in entry.name else entry


def run(guest: Guest, directory: Path, checkout: Path, *, disks: int = 3, disk_bytes: int = 96 << 20,
        seconds: float = 900) -> str:  # fmt: skip
    """Boot, run the story, power off; returns the console."""
    code = code_disk(directory / "code.tar", checkout)
    drives = [(guest.disk, "on"), (code, "on")]
    for number in range(disks):
        path = directory / f"disk{number}.raw"
        path.touch()
        os.truncate(path, disk_bytes)
        drives.append((path, "off"))
    command = [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max,cx16=off", "-smp", "2", "-m", "1024", "-nographic",
        "-no-reboot", "-nodefaults", "-serial", f"file:{directory}/console.log", "-kernel", str(guest.kernel),
        "-initrd", str(guest.initial_ram_disk),
        "-append", "root=/dev/vda ro console=ttyS0 quiet panic=-1 init=/sbin/failback-init",
    ]  # fmt: skip
    for number, (path, read_only) in enumerate(drives):
        command += ["-drive", f"id=d{number},if=none,format=raw,file={path},discard=unmap,readonly={read_only}"]
        command += ["-device", f"virtio-blk-pci,drive=d{number}"]
    subprocess.run(command, check=True, timeout=seconds, stdin=subprocess.DEVNULL, capture_output=True)
    return (directory / "console.log").read_text(errors="replace")
