"""What the benches stand on: working directories, disk images, loop devices, contents, fio, the machine's facts.

``Ground`` removes all that it made, also after a failure. ``FAILBACK_BENCH_DIRECTORY`` (default /var/tmp) holds the disks;
/dev/shm stands for other machines' disks where a bench says so.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30
SMALL = os.environ.get("SCALE", "full") == "small"
SCALE = "small" if SMALL else "full"
PAIRS = int(os.environ.get("PAIRS", "5"))


def run(*command: str, check: bool = True, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout.strip()


def machine_facts() -> dict[str, Any]:
    cpu = next(
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
    where = run("df", "--output=source,fstype", str(_base())).splitlines()[-1].split()
    commit = run("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD", check=False)
    return {
        "cpus": os.cpu_count(), "cpu": cpu, "memory_megabytes": memory, "kernel": platform.release(),
        "python": platform.python_version(), "disk": " ".join(where), "load_before": [round(load, 2) for load in os.getloadavg()],
        "commit": commit, "scale": SCALE, "day": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
    }  # fmt: skip


def _base() -> Path:
    return Path(os.environ.get("FAILBACK_BENCH_DIRECTORY", "/var/tmp"))


class Ground:
    """``on_disk`` and ``in_memory`` are empty directories; the rest makes things in them."""

    def __enter__(self) -> Ground:
        self._stack = contextlib.ExitStack()
        self.on_disk = self._directory(_base())
        self.in_memory = self._directory(Path("/dev/shm"))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _directory(self, base: Path) -> Path:
        path = Path(tempfile.mkdtemp(prefix="failback-bench-", dir=base))
        self._stack.callback(shutil.rmtree, path, ignore_errors=True)
        return path

    def loop(self, image: Path) -> str:
        """A loop device on the image, unbuffered."""
        device = run("losetup", "-f", "--show", "--direct-io=on", str(image))
        self._stack.callback(run, "losetup", "-d", device, check=False)
        return device

    def volume(self, name: str, size_bytes: int, kind: str = "ext4") -> Path:
        """A file system on an image of its own: another disk."""
        image = self.on_disk / f"{name}.image"
        sparse(image, size_bytes)
        device = self.loop(image)
        options = ["-E", "lazy_itable_init=0"] if kind == "ext4" else []
        run(f"mkfs.{kind}", "-q", *options, device)
        point = self.on_disk / name
        point.mkdir()
        run("mount", device, str(point))
        self._stack.callback(run, "umount", "-l", str(point), check=False)
        return point


def sparse(path: Path, size_bytes: int) -> None:
    with path.open("wb") as stream:
        stream.truncate(size_bytes)


def text_like(size_bytes: int, seed: int) -> bytes:
    """Lines of words by a Zipf law with numbers among them: zstd level 1 makes about 0.4 of it."""
    chance = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 11))).encode() for _ in range(20000)]
    generator = np.random.default_rng(seed)
    parts: list[bytes] = []
    done = 0
    while done < size_bytes:
        ranks = np.minimum(generator.zipf(1.25, 200_000), len(words)) - 1
        numbers = generator.integers(0, 1 << 31, 200_000)
        piece = b" ".join(
            words[rank] if place % 12 else b"%d\n" % numbers[place] for place, rank in enumerate(ranks.tolist())
        )
        parts.append(piece)
        done += len(piece)
    return b"".join(parts)[:size_bytes]


def half_full(path: Path, size_bytes: int) -> None:
    """Stretches of 64 MiB: text-like, empty, random, empty."""
    sparse(path, size_bytes)
    stretch = 64 * MEBIBYTE
    text = text_like(stretch, 1)
    with path.open("r+b") as stream:
        for number in range(size_bytes // stretch):
            if number % 2:
                continue
            turn = (number * 7919) % stretch
            content = text[turn:] + text[:turn] if number % 4 == 0 else os.urandom(stretch)
            stream.seek(number * stretch)
            stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    forget(path)


def random_filled(path: Path, size_bytes: int) -> None:
    """Incompressible everywhere, on disk."""
    with path.open("wb") as stream:
        for _ in range(size_bytes // (16 * MEBIBYTE)):
            stream.write(os.urandom(16 * MEBIBYTE))
        stream.flush()
        os.fsync(stream.fileno())
    forget(path)


def forget(path: Path) -> None:
    """Drop the file's pages (or the device's) from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def same(source: Path | str, copy: Path | str, size_bytes: int) -> bool:
    """Byte for byte; pages of both are dropped before and after."""
    for path in (source, copy):
        forget(Path(path))
    equal = subprocess.run(["cmp", "-s", "-n", str(size_bytes), str(source), str(copy)], check=False).returncode == 0
    for path in (source, copy):
        forget(Path(path))
    return equal


def fio(name: str, **options: object) -> dict[str, Any]:
    """Runs one job and returns fio's own figures of it."""
    told = {
        "ioengine": options.pop("ioengine", "libaio"),
        "direct": 1,
        "serialize_overlap": 1,
        "randrepeat": 0,
        "norandommap": 1,
        "refill_buffers": 1,
        "group_reporting": 1,
        "thread": 1,
    } | options  # an engine's own options come after its name
    arguments = [f"--{key}={value}" if value is not None else f"--{key}" for key, value in told.items()]
    with tempfile.TemporaryDirectory() as working:
        text = run("fio", f"--name={name}", *arguments, "--output-format=json", f"--aux-path={working}", cwd=working)
    found: dict[str, Any] = json.loads(text[text.index("{") :])["jobs"][0]
    return found


@contextlib.contextmanager
def process(*command: str, log: Path | None = None, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Ended at the end."""
    with open(log or os.devnull, "ab") as output:
        started = subprocess.Popen(command, stdout=output, stderr=output, **options)
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
