"""The mobility service's offline archive for the lab's guest, built from this very installation and cached.

The archive itself differs at each build (times inside it), so the cache is keyed by what goes in: our modules that a
protected machine runs, and the compiled capture program.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import failback

GUEST_PYTHON = "3.11"
_PARTS = (
    "errors.py",
    "__init__.py",
    "__main__.py",
    "serve.py",
    "runtime",
    "model",
    "protocol",
    "transport",
    "mobility",
)


def build(cache: Path, say: Callable[[str], None]) -> Path:
    """Find or build the archive."""
    from failback.mobility.bundle import make_bundle

    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / f"bundle-{source_digest()}.tar.gz"
    if not archive.exists():
        say("building the mobility service's bundle")
        partial = archive.with_name("partial-" + archive.name)
        make_bundle(partial)
        partial.rename(archive)
        for old in cache.glob("bundle-*.tar.gz"):
            if old != archive:
                old.unlink()
    return archive


def source_digest() -> str:
    package = Path(failback.__file__).parent
    digest = hashlib.sha256(failback.__version__.encode())
    for part in _PARTS:
        place = package / part
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        for path in files:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
