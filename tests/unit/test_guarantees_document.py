"""docs/guarantees.md names tests that exist, and every rule of the data path."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs/guarantees.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", DOCUMENT)))
ROWS = [line for line in DOCUMENT.splitlines() if line.startswith("| ") and not line.startswith("| promise")]


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_named_test_exists(path: str, name: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert re.search(rf"^(?:async )?def {name or 'test_'}", text, re.MULTILINE), f"{path} has no test {name}"


def test_every_promise_names_its_test() -> None:
    assert len(ROWS) > 25
    for row in ROWS:
        promise, rules, shown = (cell.strip() for cell in row.strip("|").split("|"))
        assert promise and re.fullmatch(r"(D\d+(, D\d+)*)?", rules), row
        assert "`tests/" in shown, row


def test_every_rule_of_the_data_path_is_promised() -> None:
    promised = {rule for row in ROWS for rule in re.findall(r"\bD\d+\b", row)}
    assert promised == {f"D{number}" for number in range(1, 23)}


def test_every_section_says_what_is_not_promised() -> None:
    sections = DOCUMENT.split("\n## ")[1:]
    assert sections and all("**Not promised.**" in section for section in sections)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([\w./-]+)\)", DOCUMENT):
        assert (ROOT / "docs" / target).exists(), target
