"""The mobility service's configuration file: deploy/mobility.toml is the commented sample.

Nothing here may point at a captured disk for use during streaming: the runtime directory and the pins live in memory
(tmpfs, bpffs); the state directory (identity and certificate) is written at enrolment only.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from failback.errors import ConfigurationError
from failback.runtime import config as configuration
from failback.transport.https import ControlConfig


class Compression(enum.Enum):
    ON = "on"
    OFF = "off"
    AUTO = "auto"
    """A sample of each batch decides."""


@dataclass(frozen=True, slots=True)
class MobilityConfig:
    configuration_server: ControlConfig
    state_directory: Path = Path("/var/lib/failback/mobility")
    runtime_directory: Path = Path("/run/failback")
    pin_directory: Path = Path("/sys/fs/bpf/failback")
    disks: tuple[str, ...] = ()
    """Whole-disk devices that may be captured, e.g. ``/dev/vda``; empty: every disk of the machine."""
    exclude_disks: tuple[str, ...] = ()
    ring_megabytes: int = 64
    compression: Compression = Compression.AUTO
    unacknowledged_megabytes: int = 32
    """Bytes sent and not yet durable at the process server; bounds the memory beside the ring."""
    pre_script: str = ""
    post_script: str = ""
    script_timeout_seconds: float = 30.0
    scrub_every_hours: float = 168.0
    """How often the disks are compared with the replica in the background; 0: only when it is asked for."""
    scrub_megabytes_per_second: float = 20.0
    hold_groups: tuple[str, ...] = ()
    """Control groups (``/system.slice``) that a replication group's mark stops; empty: all but init's and this service's."""
    metrics_listen: str = ""
    """ADDRESS:PORT on loopback for Prometheus; empty: none, the configuration server shows the same figures."""
    niceness: int = 10
    """While the service keeps up it gives way to the machine's own programs (nice 0 to 19); 0: never."""
    log_level: str = "INFO"


def load(path: Path) -> MobilityConfig:
    """Read and check the file. Raises ConfigurationError with the key's name."""
    config = configuration.load(path, MobilityConfig)
    ring = config.ring_megabytes
    if ring < 1 or ring & (ring - 1):
        raise ConfigurationError(
            f"{path}: ring_megabytes: {ring} is not a power of two", remedy="use 16, 32, 64, 128, 256 or 512"
        )
    if config.unacknowledged_megabytes < 1:
        raise ConfigurationError(f"{path}: unacknowledged_megabytes: at least 1 is needed")
    if not 0 <= config.niceness <= 19:
        raise ConfigurationError(f"{path}: niceness: 0 to 19, not {config.niceness}")
    for key, script in (("pre_script", config.pre_script), ("post_script", config.post_script)):
        if script and not Path(script).is_absolute():
            raise ConfigurationError(f"{path}: {key}: an absolute path is needed, not {script!r}")
    return config
