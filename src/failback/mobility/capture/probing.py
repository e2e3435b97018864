"""Whether this machine can be captured: every feature is looked for by itself, so that the reason is one sentence.

Features, never versions. Cheap and without effect: a few files are read, nothing is loaded. What the verifier says comes
after, when the programs are loaded for the self-test. ``root`` is where the files lie; only tests give another one.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from failback.errors import NotSupportedError

_CAPABILITIES = {"CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
_TRACEPOINTS = ("block_bio_queue", "block_split", "block_bio_complete", "block_rq_complete")
_HELPERS = {
    "BPF_FUNC_ringbuf_reserve": "5.8", "BPF_FUNC_for_each_map_elem": "5.13", "BPF_FUNC_loop": "5.17",
}  # fmt: skip
"""With the first kernel of kernel.org that has it; distributions carry some back."""
_OLD = "boot a newer kernel (Debian 12, Ubuntu 24.04, RHEL 9.4 or later have all that is needed)"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why the machine cannot be captured. ``code`` is stable."""

    code: str
    sentence: str
    remedy: str

    def error(self) -> NotSupportedError:
        return NotSupportedError(self.sentence, code=self.code, remedy=self.remedy)


def obstacle(root: Path = Path("/"), *, machine: str = "", effective_user: int | None = None) -> Obstacle | None:
    """The first feature that is missing, in the order in which they depend on one another; None when all are there."""
    machine = machine or platform.machine()
    if machine != "x86_64":
        return Obstacle(
            "ArchitectureNotSupported", f"capture does not know the memory layout of {machine}",
            "only x86_64 machines can be protected in this version",
        )  # fmt: skip
    user = os.geteuid() if effective_user is None else effective_user
    if user != 0:
        return Obstacle("RootNeeded", "capturing writes needs root", "run the mobility service as root")
    return _privileges(root) or _kernel(root) or _types(root)


def _privileges(root: Path) -> Obstacle | None:
    status = _text(root / "proc/self/status")
    effective = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "")
    missing = [name for name, bit in _CAPABILITIES.items() if effective and not int(effective, 16) >> bit & 1]
    if missing:
        return Obstacle(
            "CapabilitiesMissing", f"this process is root without {', '.join(missing)}",
            "run the mobility service on the machine itself, not in a container, or give it these capabilities",
        )  # fmt: skip
    return None


def _kernel(root: Path) -> Obstacle | None:
    if "[confidentiality]" in _text(root / "sys/kernel/security/lockdown"):
        return Obstacle(
            "KernelLockdown", "the kernel is locked down for confidentiality: no program may read its memory",
            "boot with lockdown=integrity (what Secure Boot asks for) or without lockdown",
        )  # fmt: skip
    filesystems = _text(root / "proc/filesystems")
    if filesystems and "\tbpf\n" not in filesystems:
        return Obstacle("BpfMissing", "this kernel has no bpf() system call", "boot a kernel with CONFIG_BPF_SYSCALL")
    return None


def _types(root: Path) -> Obstacle | None:
    try:
        types = (root / "sys/kernel/btf/vmlinux").read_bytes()
    except OSError:
        return Obstacle(
            "BtfMissing", "this kernel describes no types (BTF)",
            "boot a kernel with CONFIG_DEBUG_INFO_BTF (Debian 12, Ubuntu 22.04 and RHEL 8.2 have it)",
        )  # fmt: skip
    for name in _TRACEPOINTS:
        if b"\0btf_trace_%s\0" % name.encode() not in types:
            return Obstacle(
                "TracepointMissing", f"this kernel has no tracepoint {name}", "boot a kernel with CONFIG_TRACEPOINTS"
            )
    for name, first in _HELPERS.items():
        if b"\0%s\0" % name.encode() not in types:
            helper = name.replace("BPF_FUNC_", "bpf_")
            return Obstacle("HelperMissing", f"this kernel is too old: it has no {helper} (Linux {first})", _OLD)
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
