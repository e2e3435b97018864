"""Rows 20-22 and 25-30: the ways between the machine and the servers, tried by those who will use them."""

from __future__ import annotations

from failback.protection.readiness.facts import ReadinessFacts
from failback.protection.readiness.finding import CONNECTIVITY, Check, failed, judged, passed, skipped, warned
from failback.protection.readiness.rows import BOTH, Place, Row

LATENCY_WARNING_MILLISECONDS = 50.0
PRIVATE_PATHS = {"vpn": "a site-to-site VPN", "expressroute-private": "ExpressRoute private peering"}
AGENT_TO_CONTROL = "agent to configuration server"
AGENT_TO_PROCESS_SERVER = "agent to process server"
PROCESS_SERVER_TO_CONTROL = "process server to configuration server"
PROCESS_SERVER_TO_TARGET = "process server to master target"
MASTER_TARGET_TO_CONTROL = "master target to configuration server"


def private_path(facts: ReadinessFacts) -> list[Check]:
    """Either satisfies the row (contradiction 9)."""
    if facts.azure is None:
        return skipped(facts.cloud_fabric, "The fabric says nothing of its network; the connections are tried instead.")
    found = PRIVATE_PATHS.get(facts.azure.path_home)
    no = "The cloud network has neither a site-to-site VPN nor ExpressRoute private peering to on premises."
    return judged(found is not None, facts.cloud_fabric, f"The private path home is {found}.", no)


def _edge(facts: ReadinessFacts, purpose: str) -> list[Check]:
    found: list[Check] = []
    name = f"{CONNECTIVITY}: {purpose}"
    if facts.source_lost and purpose != MASTER_TARGET_TO_CONTROL:
        return skipped(purpose, "Nothing more comes from a lost machine.", name)
    for edge in facts.probes:
        if edge.purpose != purpose:
            continue
        subject = f"{edge.source} -> {edge.target}"
        if edge.failure is None:
            found += skipped(subject, f"{edge.source} cannot be asked to try it now.", name)
        elif edge.failure:
            remedy = f"open TCP from {edge.source} to {edge.target} (VPN, firewall, address)"
            sentence = f"{edge.source} cannot connect to {edge.target}: {edge.failure}"
            found += failed(subject, sentence, remedy, edge.code or "Unreachable", name)
        else:
            taken = edge.round_trip_milliseconds
            within = "" if taken is None else f" within {taken:.1f} ms"
            found += passed(subject, f"{edge.source} connects to {edge.target}{within}.", name)
    return found or skipped(purpose, "One end is not known yet.", name)


def agent_to_control(facts: ReadinessFacts) -> list[Check]:
    return _edge(facts, AGENT_TO_CONTROL)


def agent_to_process_server(facts: ReadinessFacts) -> list[Check]:
    return _edge(facts, AGENT_TO_PROCESS_SERVER)


def process_server_to_control(facts: ReadinessFacts) -> list[Check]:
    return _edge(facts, PROCESS_SERVER_TO_CONTROL)


def ports_between_servers(facts: ReadinessFacts) -> list[Check]:
    return _edge(facts, PROCESS_SERVER_TO_TARGET) + _edge(facts, MASTER_TARGET_TO_CONTROL)


def bandwidth(facts: ReadinessFacts) -> list[Check]:
    rate, changed = facts.transfer.measured_bytes_per_second, facts.transfer.changed_bytes_per_second
    if rate is None or changed is None:
        return skipped(facts.item_name, "The rate of the path or of the machine's changes was not measured yet.")
    figures = f"{changed / 1e6:.1f} MB/s change, {rate / 1e6:.1f} MB/s were sent ({facts.transfer.measured_by})"
    if changed > rate:
        return warned(facts.item_name, f"The machine changes faster than the path carries: {figures}.")
    return passed(facts.item_name, f"The path carries more than changes: {figures}.")


def latency(facts: ReadinessFacts) -> list[Check]:
    for edge in facts.probes:
        taken = edge.round_trip_milliseconds
        if edge.purpose != AGENT_TO_PROCESS_SERVER or taken is None:
            continue
        subject = f"{edge.source} -> {edge.target}"
        if taken > LATENCY_WARNING_MILLISECONDS:
            return warned(
                subject, f"A connection takes {taken:.0f} ms; {LATENCY_WARNING_MILLISECONDS:.0f} ms are much."
            )
        return passed(subject, f"A connection takes {taken:.1f} ms.")
    return skipped(facts.item_name, "The way from the machine to the process server was not tried.")


def placement(facts: ReadinessFacts) -> list[Check]:
    server = facts.process_server
    if server is None or not server.side or facts.azure is None:
        return skipped(facts.process_server_asked, "The place of the process server or the kind of path is not known.")
    path = PRIVATE_PATHS.get(facts.azure.path_home, "no private path")
    where = "in the cloud" if server.side == "cloud" else "on premises"
    if facts.azure.path_home == "vpn" and server.side != "cloud":
        sentence = f"{server.hostname} stands on premises and the path home is {path}: it should stand in the cloud."
        return warned(server.hostname, sentence)
    return passed(server.hostname, f"{server.hostname} stands {where}; the path home is {path}.")


ROWS = (
    Row("20", "P", "private path home", "network", "no reverse replication", check=private_path, code="NoPrivatePath",
        remedy="set up a site-to-site VPN or ExpressRoute private peering"),
    Row("21", "I", "way to the cloud", "network", "none: replication forward may use the internet", Place.DOCUMENTED,
        reason="says what the way out may use; nothing is demanded of the way home"),
    Row("X5", "X", f"{CONNECTIVITY}: {AGENT_TO_CONTROL}", "cloud machine to configuration server, port 443",
        "the machine cannot be discovered", check=agent_to_control, operations=BOTH, code="95226"),
    Row("25", "P", f"{CONNECTIVITY}: {AGENT_TO_PROCESS_SERVER}", "cloud machine to process server, port 9443",
        "no data arrives", check=agent_to_process_server, operations=BOTH, code="78186"),
    Row("26", "P", f"{CONNECTIVITY}: {PROCESS_SERVER_TO_CONTROL}", "process server to configuration server, port 443",
        "the process server gets no assignment", check=process_server_to_control, operations=BOTH, code="Unreachable"),
    Row("27", "P", "diagnosis of the process server's way", "process server to configuration server", "as row 26",
        with_row="26", operations=BOTH),
    Row("30", "P", f"{CONNECTIVITY}: {PROCESS_SERVER_TO_TARGET}", "process server to master target, port 9444; all edges",
        "reprotect fails", check=ports_between_servers, operations=BOTH, code="Unreachable"),
    Row("29", "A", "bandwidth", "private path", "replication falls behind", check=bandwidth, code="BandwidthLow",
        remedy="give the path more bandwidth, or lift the machine's bandwidth limit"),
    Row("32", "A", "latency to the process server", "cloud machine to process server", "replication is slow", check=latency,
        code="LatencyHigh", remedy="use a process server that is nearer to the machine (in the same cloud)"),
    Row("33", "A", "placement of the process server", "process server", "failback is slow", check=placement,
        code="ProcessServerPlacement", remedy="deploy a process server in the cloud, or use ExpressRoute private peering"),
)  # fmt: skip
