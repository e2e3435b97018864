"""No change that somebody asks for goes by without a row in the audit: every operation of the OpenAPI document is tried."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator

import pytest
from api_client import SiteProcess

CHANGES = ("post", "put", "patch", "delete")
VALUES = {
    "subscription": "s", "resource_group": "g", "vault": "v", "fabric": "configuration-server", "container": "machines",
    "name": "ledger", "item": "ledger", "provider": "configuration-server",
}  # fmt: skip


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteProcess]:
    with SiteProcess(tmp_path_factory.mktemp("site")) as running:
        running.import_ledger()
        yield running


def audited(site: SiteProcess) -> int:
    database = sqlite3.connect(site.directory / "state" / "configuration-server.sqlite")
    [count] = database.execute("SELECT count(*) FROM audit WHERE actor = 'administrator'").fetchone()
    database.close()
    return int(count)


def test_every_change_leaves_a_row(site: SiteProcess) -> None:
    paths = json.loads((site.directory / "openapi.json").read_text())["paths"]
    asked = [(method, path) for path, methods in sorted(paths.items()) for method in methods if method in CHANGES]
    assert len(asked) > 70
    for method, path in asked:
        filled = path
        for name, value in VALUES.items():
            filled = filled.replace(f"{{{name}}}", value)
        before = audited(site)
        status, _, _ = site.call(method.upper(), filled.replace("{", "").replace("}", ""), {"properties": {}})
        assert audited(site) > before, (method, path, status)
