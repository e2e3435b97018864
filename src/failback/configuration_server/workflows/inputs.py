"""What a job is started with, parsed at the border. The API resolves names to ids before it starts a job."""

from __future__ import annotations

from dataclasses import dataclass

from failback.model.points import PointChoice, PointSelector


@dataclass(frozen=True, slots=True)
class ReprotectInputs:
    """``process_server_id`` and ``master_target_id`` are component ids; the datastore is used for missing disks only.

    ``comparison_minutes`` above 0: replicate by periodic comparison, so often, instead of capture."""

    process_server_id: str
    master_target_id: str
    retention_volume: str
    datastore: str = ""
    policy_name: str = ""
    comparison_minutes: int = 0


@dataclass(frozen=True, slots=True)
class FailoverInputs:
    """``shut_down_source`` False: the source is off already (it is read back as off all the same)."""

    selector: PointSelector = PointSelector.LATEST
    value: str = ""
    shut_down_source: bool = True
    lease_seconds: float = 0.0
    """0: the server's setting. It bounds freeze, last mark, roll-back to an older point and power-off together."""

    def choice(self) -> PointChoice:
        return PointChoice(self.selector, self.value)


@dataclass(frozen=True, slots=True)
class ChangePointInputs:
    """The point at which the machine that came home is to start again."""

    selector: PointSelector
    value: str = ""

    def choice(self) -> PointChoice:
        return PointChoice(self.selector, self.value)


@dataclass(frozen=True, slots=True)
class RepairInputs:
    """``process_server_id``: replicate through this one from now on (empty: as before). ``reason``: why it began by itself.

    ``comparison_minutes``: from now on by periodic comparison (0: by capture); None: as before.
    """

    process_server_id: str = ""
    reason: str = ""
    comparison_minutes: int | None = None


@dataclass(frozen=True, slots=True)
class DiskChangeInputs:
    """``names``: the changes that were seen, as :meth:`failback.protection.disk_rules.DiskChanges.names` says them."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CompletionInputs:
    """``resume``: the disks were rolled back or released and have to become a replica again first."""

    resume: bool = False
