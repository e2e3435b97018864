"""Proving the capture on a machine that is not protected yet: load, capture a throw-away loop device, compare, unload.

Nothing of the machine's own disks is captured, so this is allowed before any assignment (D2), and readiness can judge it.
A process that is killed in the middle leaves its pins, and programs that run for nothing: the next start removes them.
"""

from __future__ import annotations

import os
from pathlib import Path

from failback.errors import FailbackError
from failback.mobility.capture import pins as pinned
from failback.mobility.capture import probing
from failback.mobility.capture.block_device import loop_device
from failback.mobility.capture.session import DEFAULT_PIN_DIRECTORY, CaptureSession
from failback.mobility.capture.values import CaptureDisk, SelfTest
from failback.runtime import faults, logs

log = logs.get(__name__)

RING_BYTES = 4 << 20
DISK_BYTES = 1 << 20
PREFIX = "failback-self-test-"


def self_test_without_capture() -> SelfTest:
    """Run it with pins of its own, removed in any case. Blocking, below a second natively. Never raises for a machine that
    cannot capture: that is what the result says."""
    obstacle = probing.obstacle()
    if obstacle is not None:
        return SelfTest(False, f"this machine cannot be captured: {obstacle.sentence}. {obstacle.remedy}")
    pins = DEFAULT_PIN_DIRECTORY.with_name(f"{PREFIX}{os.getpid()}")
    try:
        with loop_device(DISK_BYTES) as device:
            disk = CaptureDisk(0, device, DISK_BYTES)
            session = CaptureSession.open([disk], ring_bytes=RING_BYTES, pin_directory=pins)
            try:
                faults.point("self_test.pinned")
                return session.self_test(None)
            finally:
                session.detach()
    except (FailbackError, OSError) as error:
        remedy = f" {error.remedy}" if isinstance(error, FailbackError) and error.remedy else ""
        return SelfTest(False, f"{error}.{remedy}")


def remove_leftovers(root: Path = DEFAULT_PIN_DIRECTORY.parent) -> list[str]:
    """Remove the self-test pins of processes that are dead, or that have our number from before; returns their names."""
    removed = []
    for directory in sorted(root.glob(f"{PREFIX}*")):
        number = directory.name.removeprefix(PREFIX)
        if number.isdigit() and (int(number) == os.getpid() or not Path(f"/proc/{number}").exists()):
            try:
                pinned.remove(directory)
            except OSError as error:
                log.warning("pins of a self-test that died stay", directory=str(directory), reason=str(error))
                continue
            removed.append(directory.name)
    if removed:
        log.info("pins of self-tests that died are removed", pins=",".join(removed))
    return removed
