"""Rows 53-61, 71 and room: the retention volume, which holds the points in time of the way home.

``problem_of`` decides what keeps a volume out of the lists (rows 54-58); the master target uses it for what it reports, the
lists of the API leave out what has a problem and say why. What is merely unwise warns.
"""

from __future__ import annotations

from failback.model.components import VolumeFacts
from failback.protection.readiness.facts import ReadinessFacts
from failback.protection.readiness.finding import Check, failed, judged, passed, skipped, spoken_size, warned
from failback.protection.readiness.rows import Place, Row

FREE_MINIMUM_BYTES = 256 << 20
FREE_SHARE = 0.02
"""Free space that a retention volume needs to begin with: this share of the machine's disks, never below the minimum."""
INVENTORY_LIMIT_SECONDS = 900.0
FAT = frozenset({"vfat", "msdos", "exfat", "fat", "fat32"})
INSTALLATION = "the installation"
"""How ``VolumeFacts.holds`` and ``shares_with`` begin for the product's own files: spools, state, program."""


def problem_of(volume: VolumeFacts) -> tuple[str, str]:
    """(row, why the volume may not be used); empty texts when it may. In the order of the rows."""
    uses = [each for each in volume.holds if not each.startswith(INSTALLATION)]
    fat = volume.filesystem.lower() in FAT
    reasons = (
        ("54", bool(uses), f"it has another use: {', '.join(uses)}"),
        ("55", volume.locked, "it is locked by another process"),
        ("56", bool(volume.holds), f"the product itself lies on it: {', '.join(volume.holds)}"),
        ("57", fat, f"its file system is {volume.filesystem}; ext4, xfs or btrfs is needed"),
        ("58", volume.capacity_bytes <= 0 and not volume.problem, "its capacity is zero"),
        ("53", volume.read_only, "it is mounted read-only"),
        ("53", bool(volume.problem), volume.problem),
    )
    return next(((row, reason) for row, wrong, reason in reasons if wrong), ("", ""))


def _about(facts: ReadinessFacts, row: str, yes: str) -> list[Check]:
    """The finding of one of the display rows: on the chosen volume when it has one."""
    volume = facts.retention_volume
    if volume is None:
        return skipped(facts.retention_volume_asked, "There is no retention volume to look at.")
    found, problem = problem_of(volume)
    if found == row:
        return failed(volume.name, f"{volume.name} cannot be chosen: {problem}.")
    return passed(volume.name, yes) if not found else skipped(volume.name, "Another reason keeps it from being chosen.")


def chosen(facts: ReadinessFacts) -> list[Check]:
    if facts.master_target is None:
        return skipped(facts.retention_volume_asked, "No master target was chosen.")
    volume = facts.retention_volume
    if volume is None:
        return failed(facts.retention_volume_asked, why_none(facts))
    found, problem = problem_of(volume)
    if found == "53":
        return failed(volume.name, f"{volume.name} cannot be chosen: {problem}.", code="RetentionVolumeUnsuitable")
    if found:
        return skipped(volume.name, "Another row says why it cannot be chosen.")
    return passed(volume.name, f"The volume may hold the journal ({volume.filesystem}).")


def why_none(facts: ReadinessFacts) -> str:
    """Why no retention volume can be chosen (row 84)."""
    volumes, asked = facts.retention_volumes, facts.retention_volume_asked
    if not volumes:
        return "The master target has no retention volume: none is named in its configuration."
    refused = [f"{each.name}: {problem_of(each)[1]}" for each in volumes if problem_of(each)[0]]
    if len(refused) == len(volumes):
        return f"No retention volume of the master target can be used ({'; '.join(refused)})."
    names = ", ".join(each.name for each in volumes if not problem_of(each)[0])
    return f"The master target reports no retention volume {asked!r}; it has {names}." if asked else (
        f"No retention volume was chosen; the master target has {names}."
    )  # fmt: skip


def no_other_use(facts: ReadinessFacts) -> list[Check]:
    volume = facts.retention_volume
    shared = [each for each in volume.shares_with if not each.startswith(INSTALLATION)] if volume else []
    if volume is not None and shared and not problem_of(volume)[0]:
        return warned(volume.name, f"It is on one file system with {', '.join(shared)}: either can fill the other.")
    return _about(facts, "54", "It has no other use.")


def not_locked(facts: ReadinessFacts) -> list[Check]:
    return _about(facts, "55", "No other process holds it.")


def no_installation_on_it(facts: ReadinessFacts) -> list[Check]:
    return _about(facts, "56", "No installation and no cache lies on it.")


def not_fat(facts: ReadinessFacts) -> list[Check]:
    return _about(facts, "57", "Its file system can hold the journal.")


def has_capacity(facts: ReadinessFacts) -> list[Check]:
    return _about(facts, "58", "It has a capacity.")


def drive_of_its_own(facts: ReadinessFacts) -> list[Check]:
    volume = facts.retention_volume
    if volume is None:
        return skipped(facts.retention_volume_asked, "There is no retention volume to look at.")
    shared = [each for each in volume.shares_with if each.startswith(INSTALLATION)]
    if shared:
        return warned(volume.name, f"It is no drive of its own: {', '.join(shared)} is on the same file system.")
    return passed(volume.name, "It is a drive of its own.")


def inventory_is_fresh(facts: ReadinessFacts) -> list[Check]:
    age = facts.inventory_age_seconds
    if facts.master_target is None or age is None:
        return skipped(facts.master_target_asked, "The master target has not told its volumes yet.")
    if age > INVENTORY_LIMIT_SECONDS:
        sentence = f"Volumes and datastores are as they were {age / 60:.0f} minutes ago: a new one may be missing."
        return warned(facts.master_target.hostname, sentence)
    return passed(facts.master_target.hostname, f"Volumes and datastores are as they were {age:.0f} s ago.")


def room(facts: ReadinessFacts) -> list[Check]:
    volume = facts.retention_volume
    if volume is None or problem_of(volume)[0]:
        return skipped(facts.retention_volume_asked, "There is no retention volume to measure.")
    protected = sum(disk.source_size_bytes for disk in facts.disks)
    needed = max(FREE_MINIMUM_BYTES, int(protected * FREE_SHARE))
    sentence = f"{spoken_size(volume.free_bytes)} are free; at least {spoken_size(needed)} are needed to begin."
    return judged(volume.free_bytes >= needed, volume.name, sentence, sentence)


_OTHER = "choose another volume"
_VOLUME = "retention volume"
_LISTED = ("failback.configuration_server.api.fabrics:router",)

ROWS = (
    Row("53", "P", "retention volume suitable", _VOLUME, "cannot be chosen", check=chosen, code="RetentionVolumeMissing",
        remedy="add and format a volume for retention on the master target and name it in its configuration"),
    Row("71", "P", "retention volume chosen", "input", "refused (506 when the field is missing)", with_row="53",
        by=("failback.configuration_server.api.inputs:check_reprotect",)),
    Row("54", "D", "retention volume: no other use", _VOLUME, "not listed", check=no_other_use, by=_LISTED,
        code="RetentionVolumeInUse", remedy=_OTHER),
    Row("55", "D", "retention volume: not locked", _VOLUME, "not listed", check=not_locked, by=_LISTED,
        code="RetentionVolumeLocked", remedy="end what holds it, or choose another volume"),
    Row("56", "D", "retention volume: no installation", _VOLUME, "not listed", check=no_installation_on_it, by=_LISTED,
        code="RetentionVolumeHoldsProduct", remedy=_OTHER),
    Row("57", "D", "retention volume: not FAT", _VOLUME, "not listed", check=not_fat, by=_LISTED,
        code="RetentionVolumeFat", remedy="format it with ext4, xfs or btrfs"),
    Row("58", "D", "retention volume: capacity", _VOLUME, "not listed", check=has_capacity, by=_LISTED,
        code="RetentionVolumeEmpty", remedy=_OTHER),
    Row("59", "I", "usual name", _VOLUME, "none: it is named in the master target's configuration", Place.DOCUMENTED,
        reason="a custom (R: on Windows, /mnt/retention on Linux), not a condition"),
    Row("60", "P", "retention volume: a drive of its own", _VOLUME, "warns: either can fill the other",
        check=drive_of_its_own, code="RetentionVolumeNotItsOwn", remedy="add a new drive for retention"),
    Row("61", "D", "inventory is fresh", "lists of volumes and datastores", "a new drive is not listed yet",
        check=inventory_is_fresh, code="InventoryStale", remedy="refresh: failback readiness NAME --refresh"),
    Row("X5b", "X", "retention capacity", _VOLUME, "the journal would be full at once", check=room, code="RetentionVolumeFull",
        remedy="free space on the volume or choose a larger one"),
)  # fmt: skip
