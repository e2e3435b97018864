"""docs/reference/metrics.md and deploy/prometheus-alerts.yml say what the code shows; the text is what Prometheus reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from failback.configuration_server.api.metrics import SERVER_METRICS
from failback.errors import ConfigurationError
from failback.model.bandwidth import BandwidthFigures
from failback.model.components import (
    LagFigures,
    MasterTargetStatus,
    MobilityStatus,
    ProcessServerStatus,
    ReplicaStatus,
    SpooledMachine,
    SyncProgress,
    VolumeFacts,
)
from failback.model.ids import ComponentId, DiskId, MachineId, PointId
from failback.model.points import Gap, PointKind, RecoveryPoint
from failback.model.traffic import StreamFigures
from failback.protection import figures
from failback.runtime.metrics import Metric, render
from failback.transport.exposition import parse_listen

ROOT = Path(__file__).parents[2]
MACHINE, SERVER = MachineId("machine-1"), ComponentId("server-1")
SECTIONS = {
    "Mobility service": figures.AGENT_METRICS,
    "Process server": figures.PROCESS_SERVER_METRICS,
    "Master target": figures.MASTER_TARGET_METRICS,
    "Configuration server": SERVER_METRICS,
}
ALL = [metric for metrics in SECTIONS.values() for metric in metrics]


def test_the_reference_lists_every_metric_as_it_is() -> None:
    text = (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")
    for title, metrics in SECTIONS.items():
        section = text.split(f"## {title}\n")[1].split("\n## ")[0]
        rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", section, re.MULTILINE)
        assert rows == [(each.name, each.kind, ", ".join(each.labels) or "-", each.help) for each in metrics]


def test_names_follow_the_conventions() -> None:
    assert len({metric.name for metric in ALL}) == len(ALL)
    for metric in ALL:
        assert metric.name.startswith("failback_") and metric.help.endswith(".")
        assert (metric.kind == "counter") is metric.name.endswith("_total")


def test_the_alerts_use_metrics_that_there_are() -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus-alerts.yml").read_text(encoding="utf-8"))
    known = {metric.name: metric for metric in ALL}
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert len(alerts) >= 10
    for rule in alerts:
        used = set(re.findall(r"failback_\w+", rule["expr"]))
        assert used and used <= set(known), rule["alert"]
        labels = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert all(labels <= set(known[name].labels) for name in used), rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical") and rule["annotations"]["action"]


def _point(number: int, *, abandoned: bool = False) -> RecoveryPoint:
    return RecoveryPoint(
        PointId(f"p{number}"), MACHINE, PointKind.CRASH_CONSISTENT, number, 1, number, number, abandoned
    )


AGENT = MobilityStatus(
    capture="capturing", backlog_bytes=7, bytes_changed=1000, bytes_sent=400, lag=LagFigures(80.0, 900.0, 2000.0, 5),
    gap="SYNC", linked=True, sync=(SyncProgress(DiskId("d"), 100, 40, 1, 1, False),),
    bandwidth=BandwidthFigures(5_000_000, True), figures=StreamFigures(64 << 20, 5, 3, 2, 1, 9, 800, 200, 16, 1000, 250),
)  # fmt: skip
REPLICA = ReplicaStatus(
    MACHINE, "attached", 1, "i", 20, 2000, 18, True, gaps=(Gap("SYNC", 1, 2),),
    points=(_point(1), _point(2), _point(3, abandoned=True)), journal_bytes=4096,
)  # fmt: skip


def values(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_figure_of_an_agent_is_shown() -> None:
    found = values(render(figures.of_agent(MACHINE, AGENT)))
    assert {key[0] for key in found} == {metric.name for metric in figures.AGENT_METRICS}
    assert found["failback_lag_seconds", "machine-1", "0.99"] == 0.9
    assert found["failback_compression_ratio", "machine-1"] == 4.0
    assert found["failback_stream_bytes_total", "machine-1", "reread"] == 200
    assert found["failback_sync_compared_bytes", "machine-1"] == 40
    assert found["failback_gap_open", "machine-1"] == 1


def test_every_figure_of_the_servers_is_shown() -> None:
    spooled = SpooledMachine(MACHINE, 1, True, True, 12, 9, 300)
    found = values(render(figures.of_process_server(SERVER, ProcessServerStatus(9443, 1000, 400, (spooled,)))))
    assert {key[0] for key in found} == {metric.name for metric in figures.PROCESS_SERVER_METRICS}
    assert found["failback_spool_queue_items", "server-1", "machine-1"] == 3
    volume = VolumeFacts("retention", "/r", "xfs", 100, 20)
    status = MasterTargetStatus(9444, (volume,), (volume,), (REPLICA,))
    found = values(render(figures.of_master_target(SERVER, status)))
    assert {key[0] for key in found} == {metric.name for metric in figures.MASTER_TARGET_METRICS}
    assert found["failback_apply_queue_items", "server-1", "machine-1"] == 2
    assert found["failback_recovery_points", "server-1", "machine-1", "CrashConsistent"] == 2, (
        "abandoned ones do not count"
    )


def test_what_a_name_may_contain_survives() -> None:
    odd = Metric("failback_odd", "gauge", 'a "help" \\ with\nlines', ("name",))
    assert values(render([odd(1.5, 'x"y\\z\nw')])) == {("failback_odd", 'x"y\\z\nw'): 1.5}
    with pytest.raises(ValueError):
        odd(1)


@pytest.mark.parametrize("text", ["127.0.0.1:9187", "[::1]:0", "127.8.8.8:1"])
def test_loopback_is_served(text: str) -> None:
    parse_listen(text)


@pytest.mark.parametrize(
    "text", ["0.0.0.0:9187", "192.0.2.1:80", "localhost:80", ":80", "127.0.0.1", "[::]:1", "127.0.0.1:99999"]
)
def test_what_others_could_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_listen(text)
