"""The bandwidth limit: words, windows of the week, and what is in force when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from failback.errors import ConfigurationError
from failback.model.bandwidth import BandwidthLimit, BandwidthWindow
from failback.protection.bandwidth_rules import (
    parse_rate,
    parse_schedule,
    parse_window,
    rate_at,
    spoken_rate,
    spoken_window,
)

MONDAY = datetime(2026, 3, 2)  # a Monday, in wall time


def limit(*windows: str, rate: str = "50MB/s") -> BandwidthLimit:
    return BandwidthLimit(parse_rate(rate), parse_schedule(windows))


@pytest.mark.parametrize(
    ("text", "rate"),
    [("50MB/s", 50_000_000), ("1.5 MiB/s", 1_572_864), ("100Mbit/s", 12_500_000), ("none", 0), ("2GB/s", 2 * 10**9)],
)
def test_rates(text: str, rate: int) -> None:
    assert parse_rate(text) == rate
    assert parse_rate(spoken_rate(rate)) == rate


@pytest.mark.parametrize("text", ["", "50", "50MB", "-5MB/s", "10KB/s", "1e9MB/s", "50 furlongs/s", "9" * 40 + "GB/s"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_rate(text)


def test_office_hours() -> None:
    office = limit("mon-fri 08:00-18:00 10MB/s")
    at = {hours: rate_at(office, MONDAY + timedelta(hours=hours)) for hours in (7.99, 8, 17.99, 18, 5 * 24 + 12)}
    assert at == {7.99: 50_000_000, 8: 10_000_000, 17.99: 10_000_000, 18: 50_000_000, 5 * 24 + 12: 50_000_000}


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    night = limit("fri 22:00-06:00 none", rate="1MB/s")
    friday, saturday, sunday = (MONDAY + timedelta(days=day) for day in (4, 5, 6))
    assert rate_at(night, friday + timedelta(hours=5)) == 1_000_000, "Friday morning belongs to Thursday"
    assert rate_at(night, friday + timedelta(hours=22)) == 0
    assert rate_at(night, saturday + timedelta(hours=5, minutes=59)) == 0
    assert rate_at(night, saturday + timedelta(hours=6)) == 1_000_000
    assert rate_at(night, sunday + timedelta(hours=1)) == 1_000_000
    sunday_night = limit("sun 22:00-06:00 2MB/s")
    assert rate_at(sunday_night, MONDAY + timedelta(hours=3)) == 2_000_000, "over the end of the week"


def test_days_wrap_and_the_lowest_open_window_holds() -> None:
    assert parse_window("sat-mon 00:00-24:00 1MB/s").days == (0, 5, 6)
    both = limit("daily 00:00-24:00 5MB/s", "mon 09:00-10:00 1MB/s", "mon 09:30-10:00 none")
    assert rate_at(both, MONDAY + timedelta(hours=9, minutes=45)) == 1_000_000
    assert rate_at(both, MONDAY + timedelta(hours=11)) == 5_000_000


def test_daylight_saving_moves_windows_with_the_wall_clock() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    morning = limit("daily 02:00-03:00 1MB/s")

    def limited(begin: datetime) -> list[int]:
        minutes = [(minute, (begin + timedelta(minutes=minute)).astimezone(berlin)) for minute in range(240)]
        return [minute for minute, local in minutes if rate_at(morning, local) < 50_000_000]

    assert limited(datetime(2026, 3, 29, 0, 0, tzinfo=UTC)) == [], "02:00 is followed by 03:00: the hour is left out"
    assert limited(datetime(2026, 10, 24, 23, 0, tzinfo=UTC)) == list(range(60, 180)), "02:00 to 03:00 comes twice"


@pytest.mark.parametrize(
    "text",
    ["mon 08:00-18:00", "foo 08:00-18:00 1MB/s", "mon 8-18 1MB/s", "mon 08:00-08:00 1MB/s", "mon 24:00-02:00 1MB/s",
     "mon 08:60-09:00 1MB/s", "mon 08:00-25:00 1MB/s", "mon- 08:00-09:00 1MB/s", ""],
)  # fmt: skip
def test_what_is_no_window(text: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        parse_window(text)
    assert error.value.remedy


windows = st.builds(
    BandwidthWindow,
    st.sets(st.integers(0, 6), min_size=1).map(lambda days: tuple(sorted(days))),
    st.integers(0, 1439), st.integers(0, 1440), st.integers(1 << 16, 1 << 40) | st.just(0),
).filter(lambda window: window.begin_minute != window.end_minute)  # fmt: skip


@given(windows)
def test_what_is_shown_can_be_set_again(window: BandwidthWindow) -> None:
    assert parse_window(spoken_window(window)) == window


@given(windows, st.integers(0, 7 * 1440 - 1))
def test_a_window_is_open_for_its_length_after_each_of_its_beginnings(window: BandwidthWindow, minute: int) -> None:
    length = (window.end_minute - window.begin_minute) % 1440 or 1440
    open_minutes = {
        (day * 1440 + window.begin_minute + step) % (7 * 1440) for day in window.days for step in range(length)
    }
    rule = BandwidthLimit(7, (window,))
    expected = window.bytes_per_second if minute in open_minutes else 7
    assert rate_at(rule, MONDAY + timedelta(minutes=minute)) == expected
