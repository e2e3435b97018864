"""Opening the fabrics that the configuration names. A driver is imported only when a fabric uses it."""

from __future__ import annotations

from failback.configuration_server.config import FabricConfig
from failback.errors import ConfigurationError, NotSupportedError
from failback.fabric.interfaces import Fabric


def open_fabric(config: FabricConfig) -> Fabric:
    """The driver's object; nothing is connected yet. Raises ConfigurationError (unknown driver) and NotSupportedError."""
    if config.driver != "kvm":
        raise ConfigurationError(f"fabric {config.name}: there is no driver {config.driver!r}", remedy='driver = "kvm"')
    try:
        from failback.fabric.kvm.driver import KvmFabric
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("failback"):
            raise
        raise NotSupportedError(
            f"fabric {config.name} needs the libvirt bindings, which are not installed",
            remedy="pip install 'failback[server,kvm]'",
        ) from error
    return KvmFabric(config.uri, dict(config.datastores))
