"""Health rules: when they warn, that they say so in a sentence, and that they are silent where they do not apply."""

from dataclasses import replace

import pytest

from failback.model.components import Role, VolumeFacts
from failback.protection import health
from failback.protection.health import ComponentFacts, ItemFacts, Level

COMPONENT = ComponentFacts(
    "ps1", Role.PROCESS_SERVER, silent_seconds=1.0, alarm_seconds=60.0, certificate_days_left=300.0,
    spool_capacity_bytes=100, spool_free_bytes=90,
)  # fmt: skip
ITEM = ItemFacts(
    "ledger", "Protected", True, capture="capturing", self_test="passed", point_age_seconds=10.0, alarm_seconds=60.0
)


def _levels(verdicts: list[health.Verdict]) -> dict[str, Level]:
    return {verdict.rule: verdict.level for verdict in verdicts if verdict.level is not Level.NORMAL}


def test_a_healthy_component_and_item_have_no_warning() -> None:
    assert _levels(health.judge_component(COMPONENT)) == {}
    assert _levels(health.judge_item(ITEM)) == {}


@pytest.mark.parametrize(
    ("change", "rule", "level"),
    [
        ({"silent_seconds": 61.0}, "heartbeat", Level.CRITICAL),
        ({"clock_skew_seconds": -6.0}, "clock", Level.WARNING),
        ({"clock_skew_seconds": 1000.0}, "clock", Level.CRITICAL),
        ({"certificate_days_left": 29.0}, "certificate", Level.WARNING),
        ({"certificate_days_left": -1.0}, "certificate", Level.CRITICAL),
        ({"spool_free_bytes": 19}, "spool", Level.WARNING),
        ({"spool_free_bytes": 4}, "spool", Level.CRITICAL),
    ],
)
def test_component_rules(change: dict[str, float], rule: str, level: Level) -> None:
    judged = health.judge_component(replace(COMPONENT, **change))  # type: ignore[arg-type]
    assert _levels(judged) == {rule: level}
    [verdict] = [verdict for verdict in judged if verdict.rule == rule]
    assert "ps1" in verdict.sentence and verdict.remedy and verdict.code


def test_the_fullest_retention_volume_in_use_decides() -> None:
    volumes = (VolumeFacts("r1", "/r1", "xfs", 100, 90), VolumeFacts("r2", "/r2", "xfs", 100, 10))
    facts = ComponentFacts("mt1", Role.MASTER_TARGET, 0.0, 60.0, volumes_in_use=volumes)
    [verdict] = [one for one in health.judge_component(facts) if one.rule == "retention-volume"]
    assert verdict.level is Level.WARNING and "r2" in verdict.sentence


@pytest.mark.parametrize(
    ("change", "rule", "level"),
    [
        ({"agent_lost": True}, "agent", Level.CRITICAL),
        ({"servers_lost": ("process-server ps1",)}, "servers", Level.WARNING),
        ({"capture": "failed", "capture_reason": "no BTF"}, "capture", Level.CRITICAL),
        ({"self_test": "failed"}, "capture", Level.CRITICAL),
        ({"gap": "overflow", "gap_seconds": 61.0}, "gap", Level.WARNING),
        ({"point_age_seconds": 901.0}, "rpo", Level.WARNING),
        ({"replica_problem": "disk full"}, "replica", Level.CRITICAL),
        ({"twin_hardware_id": "hw2", "twin_seen_seconds": 3.0}, "twin", Level.WARNING),
    ],
)
def test_item_rules(change: dict[str, object], rule: str, level: Level) -> None:
    judged = health.judge_item(replace(ITEM, **change))  # type: ignore[arg-type]
    assert _levels(judged) == {rule: level}
    assert all("ledger" in verdict.sentence for verdict in judged)


def test_what_is_expected_is_no_warning() -> None:
    synchronising = replace(ITEM, sync_open=True, gap="sync", gap_seconds=9999.0, point_age_seconds=99999.0)
    assert _levels(health.judge_item(synchronising)) == {}
    coming_home = replace(ITEM, state=health.COMMIT_PENDING, twin_hardware_id="hw2", twin_seen_seconds=1.0)
    assert _levels(health.judge_item(coming_home)) == {}
    assert health.judge_item(ItemFacts("ledger", "UnplannedFailoverCommitted", False)) == []


def test_the_worst_verdict_counts() -> None:
    judged = health.judge_item(replace(ITEM, agent_lost=True, point_age_seconds=9999.0))
    assert health.worst(judged) is Level.CRITICAL
    assert health.worst([]) is Level.NORMAL


@pytest.mark.parametrize(
    ("free", "problem", "level", "code"),
    [
        (21, "", Level.NORMAL, "SpoolHasRoom"),
        (19, "", Level.WARNING, "SpoolLow"),
        (1, "the spool at /spool has no space left", Level.CRITICAL, "SpoolFull"),
        (50, "the spools are full: they hold what they may (9 bytes); the agent waits", Level.CRITICAL, "SpoolFull"),
    ],
)
def test_an_item_is_warned_of_a_spool_at_eighty_percent(free: int, problem: str, level: Level, code: str) -> None:
    facts = health.ItemFacts(
        "ledger", "Protected", True, spool=health.Room("ps", 100, free), spool_problem=problem
    )  # fmt: skip
    [verdict] = [one for one in health.judge_item(facts) if one.rule == "spool-room"]
    assert (verdict.level, verdict.code) == (level, code)
    assert bool(verdict.remedy) is (level is not Level.NORMAL)


@pytest.mark.parametrize(
    ("free", "problem", "level", "code"),
    [
        (21, "", Level.NORMAL, "RetentionVolumeHasRoom"),
        (19, "", Level.WARNING, "RetentionVolumeLow"),
        (0, "the retention volume of /r is full: 0 MiB left", Level.CRITICAL, "RetentionVolumeFull"),
    ],
)
def test_an_item_is_warned_of_a_retention_volume_at_eighty_percent(
    free: int, problem: str, level: Level, code: str
) -> None:
    facts = health.ItemFacts(
        "ledger", "Protected", True, retention=health.Room("retention", 100, free), replica_problem=problem
    )  # fmt: skip
    [verdict] = [one for one in health.judge_item(facts) if one.rule == "retention-room"]
    assert (verdict.level, verdict.code) == (level, code)
    assert not [one for one in health.judge_item(health.ItemFacts("x", "Protected", True)) if "room" in one.rule]


@pytest.mark.parametrize(("left", "life", "level"), [(29, 365, Level.WARNING), (31, 365, Level.NORMAL), (3, 7, Level.NORMAL),
                                                     (1, 7, Level.WARNING), (-1, 7, Level.CRITICAL)])  # fmt: skip
def test_a_certificate_that_was_not_renewed_in_time(left: float, life: float, level: Level) -> None:
    facts = replace(COMPONENT, certificate_days_left=left, certificate_life_days=life)
    [verdict] = [one for one in health.judge_component(facts) if one.rule == "certificate"]
    assert verdict.level is level
