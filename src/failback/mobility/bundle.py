"""``failback mobility bundle``: one archive from which a machine without internet gets the mobility service.

It holds our wheel (the compiled capture program is in it), the three dependencies' wheels for each Python version, the
unit file, a sample configuration and ``install.sh``, which needs nothing but python3 and libbpf.so.1 on the machine:
wheels are unpacked, not installed, because a minimal Debian has neither pip nor ensurepip.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from failback import __version__
from failback.errors import ConfigurationError, NotSupportedError
from failback.runtime import logs

log = logs.get(__name__)

PYTHON_VERSIONS = ("3.11", "3.12", "3.13")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_INSTALLATION = Path(__file__).parent / "installation"
_FILES = ("install.sh", "mobility.toml", "failback-mobility.service")


def make_bundle(output: Path, python_versions: Sequence[str] = PYTHON_VERSIONS, *, wheel: Path | None = None) -> Path:
    """Write the archive (``.tar.gz``) and return its path; an existing directory gets the usual name inside it.

    ``wheel`` uses a wheel that was built already. Fetches wheels with pip. Raises NotSupportedError when pip cannot.
    """
    name = f"failback-mobility-{__version__}"
    if output.is_dir():
        output = output / f"{name}.tar.gz"
    with tempfile.TemporaryDirectory(prefix="failback-bundle-") as directory:
        root = Path(directory) / name
        own = root / "wheels" / "any"
        own.mkdir(parents=True)
        if wheel is not None:
            (own / wheel.name).write_bytes(wheel.read_bytes())
        else:
            _build_wheel(own)
        for version in python_versions:
            _fetch_dependencies(root / "wheels" / f"cp{version.replace('.', '')}", version)
        for file in _FILES:
            (root / file).write_bytes((_INSTALLATION / file).read_bytes())
        (root / "install.sh").chmod(0o755)
        partial = output.with_name(output.name + ".partial")
        with tarfile.open(partial, "w:gz", compresslevel=6) as archive:
            archive.add(root, arcname=name)
        partial.replace(output)
    log.info("bundle is written", path=str(output), bytes=output.stat().st_size)
    return output


def _build_wheel(directory: Path) -> None:
    """Our wheel: built from the checkout we run from, else fetched as the same version."""
    checkout = Path(__file__).resolve().parents[3]
    if (checkout / "pyproject.toml").is_file() and (checkout / "build_capture.py").is_file():
        _pip("wheel", "--no-deps", "--wheel-dir", str(directory), str(checkout))
    else:
        _pip("download", "--no-deps", "--only-binary=:all:", "--dest", str(directory), f"failback=={__version__}")


def _fetch_dependencies(directory: Path, python_version: str) -> None:
    directory.mkdir(parents=True)
    platforms = [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    _pip("download", "--only-binary=:all:", "--implementation", "cp", "--python-version", python_version, *platforms,
         "--dest", str(directory), *base_requirements())  # fmt: skip


def base_requirements() -> list[str]:
    """What ``pip install failback`` pulls, without any extra."""
    required = importlib.metadata.requires("failback") or []
    found = [requirement for requirement in required if "extra ==" not in requirement]
    if not found:
        raise ConfigurationError("the installed failback names no dependencies", remedy="install it with pip first")
    return found


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise NotSupportedError(
            f"pip {arguments[0]} failed: {lines[-1] if lines else f'status {done.returncode}'}",
            code="BundleFailed",
            possible_causes="no package index can be reached, pip is missing, or clang is missing for the capture program",
            remedy="run it where pip works; the bundle itself needs no internet where it is installed",
        )
