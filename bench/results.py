"""What a bench says: statistics over alternating pairs, the result file, the table in README.md. Pure but for ``write``.

Every value is the median of the pairs' own values (a pair is our run and the peer's, one after the other, so that what the
machine does otherwise falls on both); minimum and maximum stand beside it. A result without verified contents is never ok.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REQUIRED_KEYS = ("name", "value", "must", "ok", "verified_equal", "runs", "machine")


@dataclass(frozen=True)
class Spread:
    """Median with minimum and maximum."""

    median: float
    minimum: float
    maximum: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.minimum:.3g} to {self.maximum:.3g})"


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError without values: a bench that measured nothing has no figure."""
    if not values:
        raise ValueError("nothing was measured")
    return Spread(statistics.median(values), min(values), max(values))


def percentile(values: Sequence[float], fraction: float) -> float:
    """Nearest rank: the smallest value that at least ``fraction`` of all do not exceed."""
    if not values:
        raise ValueError("nothing was measured")
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * fraction // 1))
    return ordered[int(rank) - 1]


@dataclass(frozen=True)
class Bound:
    """``must`` of a figure: ``at_most`` or ``at_least``."""

    figure: str
    limit: float
    at_most: bool = True

    def met(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{self.figure} {'<=' if self.at_most else '>='} {self.limit:g}"


@dataclass
class Result:
    """``runs`` holds one dictionary of figures for each pair; ``value`` is the median of the first bound's figure."""

    name: str
    bounds: tuple[Bound, ...]
    runs: list[dict[str, Any]]
    verified_equal: bool
    does_not_show: str
    machine: Mapping[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)
    complaints: tuple[str, ...] = ()
    """Conditions of the bench that did not hold (a gap, a growing backlog): the result is then not ok."""

    def medians(self) -> dict[str, Spread]:
        names = [name for name, value in self.runs[0].items() if isinstance(value, (int, float))] if self.runs else []
        return {name: spread([run[name] for run in self.runs if name in run]) for name in names}

    def failed_bounds(self) -> list[str]:
        medians = self.medians()
        return [
            f"{bound}: {medians[bound.figure].median:.3g}" for bound in self.bounds
            if not bound.met(medians[bound.figure].median)
        ]  # fmt: skip

    @property
    def ok(self) -> bool:
        return bool(self.runs) and self.verified_equal and not self.complaints and not self.failed_bounds()

    def as_dict(self) -> dict[str, Any]:
        medians = self.medians()
        first = self.bounds[0]
        return {
            "name": self.name, "value": medians[first.figure].median, "figure": first.figure, "must": str(first),
            "ok": self.ok, "verified_equal": self.verified_equal, "bounds": [str(bound) for bound in self.bounds],
            "failed": self.failed_bounds(), "complaints": list(self.complaints),
            "medians": {name: {"median": s.median, "min": s.minimum, "max": s.maximum} for name, s in medians.items()},
            "runs": self.runs, "does_not_show": self.does_not_show, "machine": dict(self.machine), "extra": self.extra,
        }  # fmt: skip


def write(result: Result, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{result.name}.json"
    path.write_text(json.dumps(result.as_dict(), indent=1, sort_keys=False) + "\n")
    return path


def read_all(directory: Path) -> list[dict[str, Any]]:
    """Raises ValueError for a file that lacks a required key."""
    found = []
    for path in sorted(directory.glob("*.json")):
        content = json.loads(path.read_text())
        missing = [key for key in REQUIRED_KEYS if key not in content]
        if missing:
            raise ValueError(f"{path}: {', '.join(missing)} missing")
        found.append(content)
    return found


def _yes(value: object) -> str:
    return "yes" if value else "**no**"


def table(results: Sequence[Mapping[str, Any]], order: Sequence[str]) -> str:
    """Markdown: a row for each bench of ``order``; one that was not run says so."""
    by_name = {str(result["name"]): result for result in results}
    lines = [
        "| bench | value (min to max) | must | ok | equal | pairs | scale | day |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in order:
        result = by_name.get(name)
        if result is None:
            lines.append(f"| `{name}` | not run | | | | | | |")
            continue
        figure = result["medians"][result["figure"]]
        lines.append(
            f"| `{name}` | {figure['median']:.3g} ({figure['min']:.3g} to {figure['max']:.3g}) | {'; '.join(result['bounds'])} "
            f"| {_yes(result['ok'])} | {_yes(result['verified_equal'])} | {len(result['runs'])} "
            f"| {result['machine'].get('scale', '')} | {result['machine'].get('day', '')} |"
        )
    return "\n".join(lines) + "\n"


def details(results: Sequence[Mapping[str, Any]], order: Sequence[str]) -> str:
    """Markdown: all figures of each bench, what failed, and what the figure does not show."""
    by_name = {str(result["name"]): result for result in results}
    parts = []
    for name in order:
        result = by_name.get(name)
        if result is None:
            continue
        figures = "; ".join(
            f"{figure} {value['median']:.4g} ({value['min']:.4g} to {value['max']:.4g})"
            for figure, value in result["medians"].items()
        )
        failed = "".join(f" **Not met: {text}.**" for text in (*result["failed"], *result["complaints"]))
        parts.append(f"**`{name}`**: {figures}.{failed} Does not show: {result['does_not_show']}\n")
    return "\n".join(parts)
