"""Metrics as values, and their text for Prometheus (exposition format 0.0.4). No dependency: agents use it too.

A :class:`Metric` is declared once, with its help and labels; a :class:`Sample` is one of its values. :func:`render` puts the
samples of one scrape into the order that the format wants. Names end in their unit; counters end in ``_total``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    kind: str
    """gauge | counter"""
    help: str
    labels: tuple[str, ...] = ()

    def __call__(self, value: float, *labels: str) -> Sample:
        if len(labels) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, not {len(labels)} values")
        return Sample(self, labels, value)


@dataclass(frozen=True, slots=True)
class Sample:
    metric: Metric
    labels: tuple[str, ...]
    value: float


def render(samples: Iterable[Sample]) -> str:
    grouped: dict[str, list[Sample]] = {}
    for sample in samples:
        grouped.setdefault(sample.metric.name, []).append(sample)
    lines = []
    for name, found in sorted(grouped.items()):
        metric = found[0].metric
        lines.append(f"# HELP {name} {_escaped(metric.help)}")
        lines.append(f"# TYPE {name} {metric.kind}")
        lines.extend(_line(sample) for sample in found)
    return "\n".join(lines) + "\n"


def _line(sample: Sample) -> str:
    pairs = zip(sample.metric.labels, sample.labels, strict=True)
    labels = ",".join(f'{name}="{_quoted(value)}"' for name, value in pairs)
    value = repr(float(sample.value)) if sample.value != int(sample.value) else str(int(sample.value))
    return f"{sample.metric.name}{{{labels}}} {value}" if labels else f"{sample.metric.name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', '\\"')
