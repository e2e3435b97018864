"""What readiness, health and the jobs say of a machine that is replicated by periodic comparison."""

from __future__ import annotations

from dataclasses import replace

from test_readiness_checks import SOUND

from failback.model.components import ComparisonStatus, MobilityStatus, ReplicaStatus
from failback.model.ids import MachineId, PassId
from failback.protection import failback_rules, health
from failback.protection.readiness import Verdict, evaluate

STATUS = MobilityStatus(
    capture="comparing",
    self_test="failed",
    epoch=3,
    pass_id=PassId("p"),
    sync_done=True,
    comparison=ComparisonStatus(900),
)
REPLICA = ReplicaStatus(MachineId("m"), "attached", 3, "journal", 9, 9, 9, consistent=False, gap="sync")


def test_readiness_names_the_remedy_and_takes_the_choice() -> None:
    facts = replace(SOUND, agent_self_test="failed", agent_problem="this kernel describes no types (BTF)")
    (refused,) = [check for check in evaluate(facts) if check.name == "capture self-test"]
    assert refused.verdict is Verdict.FAIL and "BTF" in refused.sentence and "--periodic-comparison" in refused.remedy
    (taken,) = [check for check in evaluate(replace(facts, comparison_minutes=15)) if check.name == "capture self-test"]
    assert taken.verdict is Verdict.PASS and "every 15 min" in taken.sentence and "5.0 GiB are read" in taken.sentence


def test_protected_without_a_point_only_when_it_was_chosen() -> None:
    assert failback_rules.capture_missing(STATUS, 3) == ""
    assert "epoch 3" in failback_rules.capture_missing(STATUS, 4)
    assert failback_rules.capture_missing(replace(STATUS, comparison=None), 3)
    assert failback_rules.protection_missing(STATUS, REPLICA, 3, PassId("p")) == ""
    assert failback_rules.protection_missing(replace(STATUS, comparison=None), REPLICA, 3, PassId("p"))
    assert failback_rules.protection_missing(replace(STATUS, sync_done=False), REPLICA, 3, PassId("p"))


def test_health_never_calls_it_normal() -> None:
    facts = health.ItemFacts(
        "one", "Protected", True, capture="comparing", self_test="failed", comparison_minutes=15, smeared=4, gap="sync",
        gap_seconds=9999.0,
    )  # fmt: skip
    verdicts = {verdict.rule: verdict for verdict in health.judge_item(facts)}
    told = verdicts["capture"]
    assert (told.level, told.code) == (health.Level.WARNING, "PeriodicComparison")
    assert "wrote during the last 4" in told.sentence and "No recovery point" in told.sentence
    assert "gap" not in verdicts
    failed = health.judge_item(replace(facts, capture="failed", capture_reason="the disk is gone"))
    assert [one.code for one in failed if one.level is health.Level.CRITICAL] == ["CaptureFailed"]
