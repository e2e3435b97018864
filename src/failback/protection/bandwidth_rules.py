"""The bandwidth limit in words and in force: ``50MB/s``, ``mon-fri 08:00-18:00 10MB/s``. Pure.

A window is meant in wall time, so daylight saving moves it with the clock: an hour that comes twice is limited twice, an hour
that is left out is not missed. A window that wraps past midnight belongs to the day on which it begins.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from failback.errors import ConfigurationError
from failback.model.bandwidth import MINUTES_OF_DAY, BandwidthLimit, BandwidthWindow

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
LOWEST_BYTES_PER_SECOND = 64 << 10
"""Less would let the signs of life of a link come too late."""
UNLIMITED_WORDS = ("none", "unlimited", "off")
_UNITS = {
    "b/s": 1, "kb/s": 10**3, "mb/s": 10**6, "gb/s": 10**9, "kib/s": 1 << 10, "mib/s": 1 << 20, "gib/s": 1 << 30,
    "kbit/s": 125, "mbit/s": 125_000, "gbit/s": 125_000_000,
}  # fmt: skip
_RATE = re.compile(r"^(\d+(?:\.\d+)?)\s*([a-z]+/s)$")
_TIME = re.compile(r"^(\d{1,2}):(\d\d)$")
MOST_WINDOWS = 50


def rate_at(limit: BandwidthLimit, local: datetime) -> int:
    """Bytes a second that may be sent at the local time; 0 without a limit."""
    day, minute = local.weekday(), local.hour * 60 + local.minute
    open_now = [window.bytes_per_second for window in limit.windows if _is_open(window, day, minute)]
    if not open_now:
        return limit.bytes_per_second
    return min((rate for rate in open_now if rate), default=0)


def _is_open(window: BandwidthWindow, day: int, minute: int) -> bool:
    if window.begin_minute < window.end_minute:
        return day in window.days and window.begin_minute <= minute < window.end_minute
    began_today = day in window.days and minute >= window.begin_minute
    return began_today or ((day - 1) % 7 in window.days and minute < window.end_minute)


def parse_rate(text: str) -> int:
    """``50MB/s``, ``1.5 MiB/s``, ``100Mbit/s``; ``none`` is 0. Raises ConfigurationError."""
    word = text.strip().lower()
    if word in UNLIMITED_WORDS:
        return 0
    found = _RATE.match(word)
    if found is None or found[2] not in _UNITS:
        raise _wrong(f"{text!r} is not a rate", "write 50MB/s, 1.5MiB/s, 100Mbit/s or none")
    rate = int(float(found[1]) * _UNITS[found[2]])
    if not LOWEST_BYTES_PER_SECOND <= rate < 1 << 50:
        raise _wrong(f"{text!r} is too slow to keep a link alive, or absurdly fast", "use at least 64KiB/s, or none")
    return rate


def parse_window(text: str) -> BandwidthWindow:
    """``mon-fri 08:00-18:00 10MB/s``, ``sat,sun 00:00-24:00 none``, ``daily 22:00-06:00 none``. Raises ConfigurationError."""
    parts = text.split()
    if len(parts) != 3:
        raise _wrong(f"{text!r} is not a window of a schedule", 'write "DAYS HH:MM-HH:MM RATE"')
    begin, dash, end = parts[1].partition("-")
    if not dash:
        raise _wrong(f"{parts[1]!r} is not a span of time", "write 08:00-18:00")
    window = BandwidthWindow(_days(parts[0]), _minute(begin, text), _minute(end, text), parse_rate(parts[2]))
    if window.begin_minute in (MINUTES_OF_DAY, window.end_minute):
        raise _wrong(f"{parts[1]!r} is an empty span of time", "write 00:00-24:00 for the whole day")
    return window


def parse_schedule(texts: Sequence[str]) -> tuple[BandwidthWindow, ...]:
    if len(texts) > MOST_WINDOWS:
        raise _wrong(f"{len(texts)} windows are more than {MOST_WINDOWS}", "use fewer")
    return tuple(parse_window(text) for text in texts)


def spoken_rate(bytes_per_second: int) -> str:
    """As :func:`parse_rate` reads it."""
    if not bytes_per_second:
        return "none"
    for unit, size in (("GB/s", 10**9), ("MB/s", 10**6), ("KB/s", 10**3), ("KiB/s", 1 << 10)):
        if bytes_per_second % size == 0:
            return f"{bytes_per_second // size}{unit}"
    return f"{bytes_per_second}B/s"


def spoken_window(window: BandwidthWindow) -> str:
    """As :func:`parse_window` reads it."""
    days = "daily" if len(window.days) == len(DAYS) else ",".join(DAYS[day] for day in window.days)
    span = "-".join(f"{minute // 60:02d}:{minute % 60:02d}" for minute in (window.begin_minute, window.end_minute))
    return f"{days} {span} {spoken_rate(window.bytes_per_second)}"


def _days(text: str) -> tuple[int, ...]:
    if text.lower() in ("daily", "all"):
        return tuple(range(7))
    found: set[int] = set()
    for part in text.lower().split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise _wrong(f"{part!r} names no days", f"use {', '.join(DAYS)}, mon-fri or daily")
        begin, end = DAYS.index(first), DAYS.index(last if dash else first)
        found.update((begin + step) % 7 for step in range((end - begin) % 7 + 1))
    return tuple(sorted(found))


def _minute(text: str, where: str) -> int:
    found = _TIME.match(text)
    minute = int(found[1]) * 60 + int(found[2]) if found else -1
    if found is None or int(found[2]) > 59 or minute > MINUTES_OF_DAY:
        raise _wrong(f"{text!r} in {where!r} is not a time of day", "write 08:00; 24:00 is the end of the day")
    return minute


def _wrong(sentence: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(sentence, code="InvalidBandwidth", remedy=remedy)
