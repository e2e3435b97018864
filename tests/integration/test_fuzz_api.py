"""The ARM API from its own OpenAPI document, attacked by schemathesis: whatever a caller sends, never an answer of 500 and above.

Against a living site with an imported machine; the names in the paths are sometimes those of things that exist."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from api_client import IMPORT, ITEM, SiteProcess
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

KNOWN = {
    "subscription": "s", "resource_group": "g", "vault": "v", "fabric": "configuration-server", "container": "machines",
    "name": "ledger", "item": "ledger", "item_name": "ledger",
}  # fmt: skip
EXAMPLES = 4
REFUSED_EXAMPLES = 1
"""Of what is not served (``api.unavailable``): about a hundred paths with one answer."""
STRANGE = [
    "null",
    "\u0000",
    "\U0001f600",
    "x" * 3000,
    "'; DROP TABLE items; --",
    "-1",
    "1e999",
    "../../x",
    "%00",
    "\n",
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteProcess]:
    with SiteProcess(tmp_path_factory.mktemp("site")) as running:
        status, answer, _ = running.call("PUT", ITEM, {"properties": {"providerSpecificDetails": IMPORT}})
        assert status in (200, 202), answer
        yield running


def operations(site: SiteProcess) -> list[Any]:
    schema = schemathesis.openapi.from_dict(json.loads((site.directory / "openapi.json").read_text()))
    return [found.ok() for found in schema.get_all_operations()]


def test_no_answer_of_500_and_above(site: SiteProcess) -> None:
    all_operations = operations(site)
    assert len(all_operations) > 20
    said: dict[int, int] = {}
    for operation in all_operations:
        _attack(site, operation, said)
    assert sum(said.values()) > 20 * EXAMPLES / 2 and any(status < 300 for status in said), said
    assert site.call("GET", ITEM)[0] in (200, 404)  # it lives


def test_half_a_character_is_refused(site: SiteProcess) -> None:
    """A lone surrogate, which no database takes; apart, because schemathesis cannot send it."""
    halved = {"properties": {"providerSpecificDetails": _with(IMPORT, "\ud83d"), "comparisonMinutes": "\ud83d"}}
    for path in (ITEM, ITEM.replace("ledger", "another")):
        status, answer, _ = site.call("PUT", path, halved)
        assert 400 <= status < 500, answer


def _attack(site: SiteProcess, operation: Any, said: dict[int, int]) -> None:
    examples = REFUSED_EXAMPLES if "not available" in (operation.tags or ()) else EXAMPLES

    @given(case=operation.as_strategy(), known=st.booleans(), strange=st.sampled_from([None, None, *STRANGE]))
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None,
              phases=[Phase.explicit, Phase.generate])  # fmt: skip
    def attacked(case: Any, known: bool, strange: str | None) -> None:
        if known:
            case.path_parameters = {**(case.path_parameters or {}), **_known(case)}
        if strange is not None and isinstance(case.body, dict):
            case.body = _with(case.body, strange)
        answer = case.call(
            base_url=site.url, verify=str(site.ca_file), headers={"Authorization": f"Bearer {site.token}"}, timeout=30
        )
        said[answer.status_code] = said.get(answer.status_code, 0) + 1
        assert answer.status_code < 500, (operation.label, case.path_parameters, case.query, case.body, answer.text)

    attacked()


def _known(case: Any) -> dict[str, str]:
    return {name: KNOWN[name] for name in case.path_parameters or {} if name in KNOWN}


def _with(body: dict[str, Any], strange: str) -> dict[str, Any]:
    """The body with every text in it replaced."""

    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: changed(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [changed(inner) for inner in value]
        return strange if isinstance(value, str) else value

    found: dict[str, Any] = changed(body)
    return found


def test_a_number_that_no_database_holds_is_not_found(site: SiteProcess) -> None:
    events = ITEM.partition("/replicationFabrics")[0] + "/replicationEvents"
    for number in (0, -1, 1 << 31, 1 << 63, 1 << 200):
        assert site.call("GET", f"{events}/{number}")[0] == 404
