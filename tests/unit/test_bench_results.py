"""Statistics and result files of the benches: what is ok, what is refused, what the table says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench import results
from bench.results import Bound, Result

MACHINE = {"cpus": 2, "scale": "small", "day": "2026-11-23"}
BOUND = Bound("ratio", 1.0)


def made(ratios: list[float], **changes: Any) -> Result:
    fields: dict[str, Any] = {
        "name": "initial_sync", "bounds": (BOUND,), "runs": [{"ratio": ratio, "note": "text"} for ratio in ratios],
        "verified_equal": True, "does_not_show": "A wide-area link.", "machine": MACHINE,
    }  # fmt: skip
    return Result(**(fields | changes))


def test_the_median_decides_and_both_ends_are_told() -> None:
    result = made([0.8, 5.0, 0.9])
    assert result.ok
    told = result.as_dict()
    assert told["value"] == 0.9
    assert told["medians"]["ratio"] == {"median": 0.9, "min": 0.8, "max": 5.0}
    assert not made([0.8, 1.2, 1.1]).ok


def test_an_even_number_of_runs_has_the_mean_of_the_two_in_the_middle() -> None:
    assert results.spread([1.0, 4.0, 2.0, 3.0]).median == 2.5


def test_nothing_measured_is_an_error_and_not_a_zero() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        results.spread([])
    with pytest.raises(ValueError, match="nothing was measured"):
        results.percentile([], 0.5)
    assert not made([]).ok


@pytest.mark.parametrize(("fraction", "expected"), [(0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100), (0.0, 1)])
def test_percentiles_by_nearest_rank(fraction: float, expected: int) -> None:
    assert results.percentile([float(n) for n in range(100, 0, -1)], fraction) == expected


@pytest.mark.parametrize("changes", [{"verified_equal": False}, {"complaints": ("a gap",)}])
def test_a_fast_result_that_is_wrong_is_not_ok(changes: dict[str, Any]) -> None:
    assert made([0.1]).ok
    assert not made([0.1], **changes).ok


@pytest.mark.parametrize(
    ("value", "at_most", "met"), [(1.0, True, True), (1.01, True, False), (1.0, False, True), (0.99, False, False)]
)
def test_bounds_include_their_limit(value: float, at_most: bool, met: bool) -> None:
    assert Bound("ratio", 1.0, at_most).met(value) is met


def test_every_bound_counts() -> None:
    runs = [{"ratio": 0.5, "plain": 3.0}]
    result = made([], runs=runs, bounds=(BOUND, Bound("plain", 2.0)))
    assert result.failed_bounds() == ["plain <= 2: 3"]
    assert not result.ok


def test_a_file_holds_what_is_required_and_comes_back(tmp_path: Path) -> None:
    path = results.write(made([0.7, 0.8]), tmp_path)
    assert path.name == "initial_sync.json"
    (told,) = results.read_all(tmp_path)
    assert set(results.REQUIRED_KEYS) <= set(told)
    assert told["machine"] == MACHINE and len(told["runs"]) == 2
    del told["verified_equal"]
    path.write_text(json.dumps(told))
    with pytest.raises(ValueError, match="verified_equal missing"):
        results.read_all(tmp_path)


def test_the_table_names_what_was_not_run_and_what_failed(tmp_path: Path) -> None:
    results.write(made([1.5]), tmp_path)
    found = results.read_all(tmp_path)
    rows = results.table(found, ("initial_sync", "growth")).splitlines()
    assert rows[2].startswith("| `initial_sync` | 1.5 (1.5 to 1.5) | ratio <= 1 | **no** | yes | 1 | small |")
    assert rows[3].startswith("| `growth` | not run |")
    assert "Not met: ratio <= 1: 1.5" in results.details(found, ("initial_sync", "growth"))
