"""Kernel 6.12 (Debian 13) in a guest: the capture, its self-test, and LVM, md and dm-crypt on three captured disks.

The image is built once (about two minutes, from a Debian mirror) and cached; a run takes about a minute and a half.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "guests"))
import image

CACHE = Path(os.environ.get("FAILBACK_LAB_CACHE", "/var/cache/failback-lab"))
CHECKOUT = Path(__file__).parents[2]
CHAPTERS = ("self-test", "order", "raw", "lvm-linear", "lvm-thin", "md-raid1", "md-raid0", "dm-crypt")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="the image is built as root"),
    pytest.mark.skipif(
        not (shutil.which("qemu-system-x86_64") and shutil.which("mmdebstrap")), reason="QEMU and mmdebstrap are needed"
    ),
    pytest.mark.timeout(1800),
]


def test_every_stack_on_captured_disks_is_identical_on_the_other_kernel(tmp_path: Path) -> None:
    console = image.run(image.build(CACHE), tmp_path, CHECKOUT)
    story = [line.partition("STORY ")[2] for line in console.splitlines() if "STORY " in line]
    print("\n".join(story))
    assert story, console[-3000:]
    assert story[0].startswith("kernel 6.12"), story[0]
    assert story[-1].strip() == "end", "\n".join(story)
    passed = [line for line in story if line.startswith("passed")]
    assert len(passed) == len(CHAPTERS)
    for chapter, line in zip(CHAPTERS, passed, strict=True):
        assert line.startswith(f"passed {chapter}"), line
