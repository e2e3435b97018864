"""The offline bundle installs on a root that has nothing but python3 and libbpf, and what it installs starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from failback.errors import NotSupportedError
from failback.mobility.bundle import base_requirements, make_bundle

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="installing needs root")
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


def run(*command: str, **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def test_a_protected_machine_needs_three_packages() -> None:
    names = sorted(requirement.split(">")[0].split("<")[0].strip() for requirement in base_requirements())
    assert names == ["cryptography", "xxhash", "zstandard"]


def test_bundle_installs_into_a_root_without_pip_and_starts(tmp_path: Path) -> None:
    archive = make_bundle(tmp_path, (VERSION,))
    assert archive.name.startswith("failback-mobility-") and archive.stat().st_size < 60 << 20
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    run("tar", "-xzf", str(archive), "-C", str(unpacked))
    (bundle,) = unpacked.iterdir()
    (own,) = (bundle / "wheels" / "any").iterdir()
    assert "capture.bpf.o" in run(sys.executable, "-m", "zipfile", "-l", str(own))
    (tmp_path / "ca.pem").write_text("certificate\n")
    (tmp_path / "passphrase").write_text("secret\n")
    # this machine's own system, seen through a private mount namespace: what the script writes stays in tmp_path
    script = f"""
        set -e
        for place in opt etc/failback etc/systemd/system var/lib; do mkdir -p {tmp_path}/over/$place; done
        mkdir -p /etc/failback
        mount --bind {tmp_path}/over/opt /opt
        mount --bind {tmp_path}/over/etc/failback /etc/failback
        mount --bind {tmp_path}/over/etc/systemd/system /etc/systemd/system
        umask 000
        {bundle}/install.sh --no-start --server https://cs:8443 --ca-file {tmp_path}/ca.pem \\
            --passphrase-file {tmp_path}/passphrase
        {bundle}/install.sh --no-start --server https://other:1 --passphrase-file /etc/failback/passphrase
        {bundle}/install.sh --no-start --server http://plain:1 && exit 1
        {bundle}/install.sh --no-start --server 'https://a"|b' && exit 1
        /opt/failback/bin/failback --version
        /opt/failback/bin/failback serve mobility --config /etc/missing.toml || test $? = 2
    """
    there = Path("/etc/failback").exists()
    try:
        said = run("unshare", "--mount", "sh", "-c", script)
    finally:
        if not there:
            Path("/etc/failback").rmdir()  # only a place to mount over
    assert said.count("is installed") == 2 and "failback 0." in said
    etc = tmp_path / "over" / "etc"
    assert 'url = "https://cs:8443"' in (etc / "failback" / "mobility.toml").read_text(), "an existing one is kept"
    assert (etc / "failback" / "passphrase").stat().st_mode & 0o777 == 0o600
    assert (etc / "failback" / "passphrase").read_text() == "secret\n", "installing from its own copy keeps it"
    installed = [path for path in (tmp_path / "over" / "opt").rglob("*") if not path.is_symlink()]
    assert installed and not any(path.stat().st_mode & 0o022 for path in installed), "root's program is root's to write"
    assert (etc / "systemd/system/multi-user.target.wants/failback-mobility.service").is_symlink()


def test_without_an_index_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "failback-0-py3-none-any.whl"
    wheel.write_bytes(b"")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(NotSupportedError, match="pip download failed") as caught:
        make_bundle(tmp_path / "bundle.tar.gz", (VERSION,), wheel=wheel)
    assert caught.value.code == "BundleFailed"
    assert not (tmp_path / "bundle.tar.gz").exists()
