"""Compiles the capture program (bpf/capture.bpf.c) into the package when a wheel is built.

Needs clang with the BPF target; a protected machine never needs a compiler because the wheel carries the object.
Also runnable by itself: ``python build_capture.py`` (what ``make build`` does in a checkout).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
SOURCE = ROOT / "bpf" / "capture.bpf.c"
OBJECT = ROOT / "src" / "failback" / "mobility" / "capture" / "capture.bpf.o"


def compile_capture_program() -> Path:
    """Compile when the object is older than any file under bpf/; returns the object's path."""
    newest = max(path.stat().st_mtime for path in (ROOT / "bpf").iterdir())
    if OBJECT.exists() and OBJECT.stat().st_mtime >= newest:
        return OBJECT
    clang = shutil.which("clang")
    if clang is None:
        raise SystemExit("clang is needed to compile bpf/capture.bpf.c: apt-get install clang libbpf-dev")
    OBJECT.parent.mkdir(parents=True, exist_ok=True)
    partial = OBJECT.with_suffix(".partial")
    subprocess.run(
        [clang, "-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3", "-D__TARGET_ARCH_x86",
         "-I/usr/include/x86_64-linux-gnu", "-c", str(SOURCE), "-o", str(partial)],
        check=True,
    )  # fmt: skip
    partial.replace(OBJECT)
    return OBJECT


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a plain script
    pass
else:

    class CaptureBuildHook(BuildHookInterface[Any]):
        """Adds the compiled object to wheels; editable installs use the one in the tree."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            if self.target_name == "wheel" and version != "editable":
                compile_capture_program()


if __name__ == "__main__":
    sys.stdout.write(f"{compile_capture_program()}\n")
