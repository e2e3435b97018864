"""Compiles the capture program (bpf/capture.bpf.c) and the C library (native/native.c) into the package when a wheel is built.

Needs clang with the BPF target; a protected machine never needs a compiler because the wheel carries both. The C library is
optional: without a C compiler it is left out, and Python does its work.
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
LIBRARY_SOURCE = ROOT / "native" / "native.c"
LIBRARY = ROOT / "src" / "failback" / "runtime" / "_native.so"
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


def compile_native_library() -> Path | None:
    """Compile when the library is older than its source; returns its path, None without a C compiler."""
    if LIBRARY.exists() and LIBRARY.stat().st_mtime >= LIBRARY_SOURCE.stat().st_mtime:
        return LIBRARY
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    partial = LIBRARY.with_suffix(".partial")
    subprocess.run([compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", str(LIBRARY_SOURCE), "-o", str(partial)],
                   check=True)  # fmt: skip
    partial.replace(LIBRARY)
    return LIBRARY


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a plain script
    pass
else:

    class CaptureBuildHook(BuildHookInterface[Any]):
        """Adds the compiled object and library to wheels; editable installs use the one in the tree."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            if self.target_name == "wheel" and version != "editable":
                compile_capture_program()
                compile_native_library()


if __name__ == "__main__":
    sys.stdout.write(
        f"{compile_capture_program()}\n{compile_native_library() or 'no C compiler: without the C library'}\n"
    )
