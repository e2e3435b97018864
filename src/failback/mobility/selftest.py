"""Proving the capture on a machine that is not protected yet: load, capture a throw-away loop device, compare, unload.

Nothing of the machine's own disks is captured, so this is allowed before any assignment (D2), and readiness can judge it.
"""

from __future__ import annotations

import os

from failback.errors import FailbackError
from failback.mobility.capture.block_device import loop_device
from failback.mobility.capture.session import DEFAULT_PIN_DIRECTORY, CaptureSession
from failback.mobility.capture.values import CaptureDisk, SelfTest

RING_BYTES = 4 << 20
DISK_BYTES = 1 << 20


def self_test_without_capture() -> SelfTest:
    """Run it with pins of its own, removed in any case. Blocking, below a second natively. Never raises for a machine that
    cannot capture: that is what the result says."""
    pins = DEFAULT_PIN_DIRECTORY.with_name(f"failback-self-test-{os.getpid()}")
    try:
        with loop_device(DISK_BYTES) as device:
            disk = CaptureDisk(0, device, DISK_BYTES)
            session = CaptureSession.open([disk], ring_bytes=RING_BYTES, pin_directory=pins)
            try:
                return session.self_test(None)
            finally:
                session.detach()
    except (FailbackError, OSError) as error:
        remedy = f" {error.remedy}" if isinstance(error, FailbackError) and error.remedy else ""
        return SelfTest(False, f"{error}.{remedy}")
