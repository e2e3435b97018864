"""The lab's guest image: Debian 12 with its stock kernel, systemd, our bundle and the ledger; built once, then cached.

Two stages, each in a file named by a digest of all that goes in: a root tarball (mmdebstrap, packages only) and the
system disk made from it with the mobility service installed. A change to our own code therefore costs seconds, not the
download. Nothing half-built is ever found: an entry is renamed into place when it is complete.

The guest is made for slow processors (QEMU's TCG): no documentation, a small initial RAM disk with just the modules it
needs, units masked that have nothing to do here, the journal in memory. It boots by kernel and initial RAM disk from
the host, so there is no boot loader; both are those of its own Debian package.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from failback.errors import FabricError

Say = Callable[[str], None]

SUITE = "bookworm"
SYSTEM_DISK_BYTES = 1 << 30
PACKAGES = (
    "systemd-sysv", "udev", "dbus", "python3", "linux-image-cloud-amd64", "libbpf1",
    "e2fsprogs", "kmod", "util-linux", "iproute2", "openssl", "procps",
)  # fmt: skip
_MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "fstrim.timer", "getty@tty1.service", "serial-getty@ttyS0.service", "systemd-journal-flush.service",
    "systemd-hwdb-update.service", "systemd-journal-catalog-update.service", "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service", "systemd-update-done.service", "ldconfig.service", "systemd-pcrphase.service",
    "systemd-pcrphase-sysinit.service", "systemd-boot-update.service", "systemd-firstboot.service",
    "systemd-machine-id-commit.service", "systemd-rfkill.socket", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
    "dev-hugepages.mount", "dev-mqueue.mount", "modprobe@drm.service", "modprobe@efi_pstore.service",
)  # fmt: skip
_INITRAMFS_HOOK = """#!/bin/sh
[ "$1" = prereqs ] && exit 0
. /usr/share/initramfs-tools/hook-functions
manual_add_modules virtio_pci virtio_blk virtio_net ext4 crc32c_generic
"""
_FSTAB = """LABEL=ledger-root / ext4 discard 0 0
LABEL=ledger-data /srv/ledger ext4 discard,nofail,x-systemd.device-timeout=60s 0 0
"""
_BUILD_TIMEOUT_SECONDS = 900


@dataclass(frozen=True, slots=True)
class GuestImage:
    """A finished cache entry."""

    system_disk: Path
    kernel: Path
    initial_ram_disk: Path


def build(cache: Path, bundle: Path, say: Say) -> GuestImage:
    """Find or build the image that has ``bundle`` (``failback mobility bundle``) installed."""
    cache.mkdir(parents=True, exist_ok=True)
    root_key = _digest([SUITE, *PACKAGES, *_MASKED, _INITRAMFS_HOOK])
    system_key = _digest([root_key, _FSTAB, _file_digest(bundle), *map(_guest_file, _guest_files())])
    entry = cache / f"system-{system_key}"
    if not entry.exists():
        tarball = cache / f"root-{root_key}.tar"
        if not tarball.exists():
            _build_root(tarball, say)
        _build_system(entry, tarball, bundle, say)
        _forget_others(cache, "system-*", entry)
        _forget_others(cache, "root-*.tar", tarball)
    return GuestImage(entry / "system.raw", entry / "vmlinuz", entry / "initrd")


def put_files(disk: Path, files: dict[str, tuple[bytes, int]], scratch: Path) -> None:
    """Write files (path in the guest -> content, mode) into an unmounted ext4 image, without mounting it."""
    scratch.mkdir(parents=True, exist_ok=True)
    commands: list[str] = []
    known: set[str] = set()
    for number, (path, (content, mode)) in enumerate(files.items()):
        source = scratch / f"put-{number}"
        source.write_bytes(content)
        for parent in map(str, reversed(Path(path).parents[:-1])):
            if parent not in known and not _exists(disk, parent):
                commands.append(f"mkdir {parent}")
            known.add(parent)
        commands += [f"rm {path}", f"write {source} {path}", f"set_inode_field {path} mode 0100{mode:o}"]
    _run(["debugfs", "-w", "-f", "-", str(disk)], text="\n".join(commands) + "\n")
    for number, (path, (content, _mode)) in enumerate(files.items()):
        (scratch / f"put-{number}").unlink()
        if read_file(disk, path, scratch / "check") != content:
            raise FabricError(
                f"{path} could not be written into {disk}", possible_causes="the image is full or damaged"
            )


def read_file(disk: Path, path: str, scratch: Path) -> bytes | None:
    """A file's content out of an ext4 image that need not be mounted; None when it is not there."""
    scratch.unlink(missing_ok=True)
    _run(["debugfs", "-R", f"dump {path} {scratch}", str(disk)])
    if not scratch.exists():
        return None
    content = scratch.read_bytes()
    scratch.unlink()
    return content


def _exists(disk: Path, path: str) -> bool:
    """debugfs makes a directory that is there already a second time, unlinked: so it has to be asked first."""
    done = subprocess.run(
        ["debugfs", "-R", f"stat {path}", str(disk)], capture_output=True, text=True, timeout=60, check=False
    )
    return "Inode:" in done.stdout


def make_ext4(disk: Path, label: str, size_bytes: int, content: Path) -> None:
    """A raw disk that is one ext4 file system holding ``content``. Complete on return: no lazy initialisation."""
    disk.unlink(missing_ok=True)
    disk.touch()
    os.truncate(disk, size_bytes)
    options = "lazy_itable_init=0,lazy_journal_init=0"
    _run(["mke2fs", "-q", "-t", "ext4", "-F", "-L", label, "-E", options, "-d", str(content), str(disk)])


def _build_root(tarball: Path, say: Say) -> None:
    say("building the guest's root (Debian 12, mmdebstrap): about a minute, once")
    mirror = os.environ.get("FAILBACK_LAB_MIRROR", "")
    partial = tarball.with_suffix(".partial.tar")
    scratch = tarball.with_suffix(".hook")
    scratch.write_text(_INITRAMFS_HOOK)
    hook = f"""mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/etc/initramfs-tools/hooks"
        echo MODULES=list > "$1/etc/initramfs-tools/conf.d/lab"
        install -m 755 {scratch} "$1/etc/initramfs-tools/hooks/lab" """
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "locale", "man", "info")]
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    _run([
        "mmdebstrap", "--variant=minbase", "--mode=root", f"--include={','.join(PACKAGES)}", *excluded,
        '--aptopt=Acquire::Languages "none"', '--aptopt=APT::Install-Recommends "false"', f"--essential-hook={hook}",
        *([f"--keyring={keyring}"] if keyring.exists() else []), SUITE, str(partial), *([mirror] if mirror else []),
    ])  # fmt: skip
    scratch.unlink()
    partial.rename(tarball)


def _build_system(entry: Path, tarball: Path, bundle: Path, say: Say) -> None:
    say("installing the mobility service into the guest's image")
    work = entry.with_name(entry.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    root = work / "root"
    root.mkdir(parents=True)
    _run(["tar", "-C", str(root), "-xf", str(tarball), "--numeric-owner", "--exclude=./dev/*"])
    _configure(root)
    _install_bundle(root, bundle)
    boot = root / "boot"
    shutil.copy(next(iter(sorted(boot.glob("vmlinuz-*")))), work / "vmlinuz")
    shutil.copy(next(iter(sorted(boot.glob("initrd.img-*")))), work / "initrd")
    make_ext4(work / "system.raw", "ledger-root", SYSTEM_DISK_BYTES, root)
    shutil.rmtree(root)
    work.rename(entry)


def _configure(root: Path) -> None:
    (root / "etc/fstab").write_text(_FSTAB)
    (root / "etc/hostname").write_text("ledger\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost ledger\n")
    (root / "etc/machine-id").write_text(hashlib.md5(b"failback lab ledger").hexdigest() + "\n")
    journal = root / "etc/systemd/journald.conf.d/lab.conf"
    journal.parent.mkdir(parents=True, exist_ok=True)
    journal.write_text("[Journal]\nStorage=volatile\nRuntimeMaxUse=16M\nForwardToConsole=yes\nMaxLevelConsole=info\n")
    units = root / "etc/systemd/system"
    for unit in _MASKED:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    for name in _guest_files():
        place, mode = _PLACES[name]
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_guest_file(name))
        path.chmod(mode)
    for unit in ("ledger.service", "lab-network.service"):
        wants = units / "multi-user.target.wants"
        wants.mkdir(exist_ok=True)
        (wants / unit).symlink_to(f"/etc/systemd/system/{unit}")
    for directory in ("srv/ledger", "var/lib/ledger/files"):
        (root / directory).mkdir(parents=True, exist_ok=True)


def _install_bundle(root: Path, bundle: Path) -> None:
    """As an administrator would: unpack the archive, run its install script; the service is enabled, not started."""
    place = root / "root/bundle"
    place.mkdir(parents=True)
    _run(["tar", "-C", str(place), "-xzf", str(bundle)])
    script = next(place.rglob("install.sh")).relative_to(root)
    _run(["chroot", str(root), "/bin/sh", f"/{script}", "--root", "/", "--no-start"])
    shutil.rmtree(place)
    wants = root / "etc/systemd/system/multi-user.target.wants"
    if not (wants / "failback-mobility.service").is_symlink():
        unit = next(path for path in _unit_places(root) if path.exists())
        (wants / "failback-mobility.service").symlink_to("/" + str(unit.relative_to(root)))


def _unit_places(root: Path) -> list[Path]:
    places = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
    return [root / place / "failback-mobility.service" for place in places]


_PLACES: dict[str, tuple[str, int]] = {
    "ledger.py": ("usr/local/lib/ledger.py", 0o755),
    "ledger.service": ("etc/systemd/system/ledger.service", 0o644),
    "lab-network.service": ("etc/systemd/system/lab-network.service", 0o644),
    "pre.sh": ("etc/failback/pre.sh", 0o755),
    "post.sh": ("etc/failback/post.sh", 0o755),
}


def _guest_files() -> Sequence[str]:
    return tuple(_PLACES)


def _guest_file(name: str) -> str:
    return resources.files("failback.lab.guest").joinpath(name).read_text(encoding="utf-8")


def _forget_others(cache: Path, pattern: str, kept: Path) -> None:
    for path in cache.glob(pattern):
        if path == kept or time.time() - path.stat().st_mtime < 3600:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _run(command: Sequence[str], text: str | None = None) -> None:
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_SECONDS, check=False
        )
    except FileNotFoundError:
        raise FabricError(f"{command[0]} is not installed", remedy="run deploy/system-packages.sh") from None
    except subprocess.TimeoutExpired:
        raise FabricError(f"{command[0]} took more than {_BUILD_TIMEOUT_SECONDS} s") from None
    if done.returncode != 0:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise FabricError(f"{command[0]} failed ({done.returncode}): {last}")
