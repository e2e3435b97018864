"""Pure parts of the jobs: what a scenario runs again, and rate and time left."""

from __future__ import annotations

import pytest

from failback.configuration_server.jobs.progress import WINDOW_SECONDS, ProgressMeter
from failback.configuration_server.jobs.scenario import Scenario, Task
from failback.errors import ConfigurationError


async def _step(_context: object) -> None:
    return None


SCENARIO = Scenario(
    "S",
    "s",
    (
        Task("Check", "check", _step),
        Task("Group", "group", children=(Task("One", "one", _step), Task("Two", "two", _step))),
        Task("Off", "off", _step, restart_from="Check"),
        Task("On", "on", _step),
    ),
)


def test_leaves_in_order_and_restarts() -> None:
    assert [task.name for task in SCENARIO.leaves()] == ["Check", "One", "Two", "Off", "On"]
    assert SCENARIO.restarted("Two") == ["Two", "Off", "On"]
    assert SCENARIO.restarted("Off") == ["Check", "One", "Two", "Off", "On"]
    assert SCENARIO.restarted("On") == ["On"]


def test_two_tasks_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError):
        Scenario("S", "s", (Task("A", "a", _step), Task("A", "a", _step)))


def test_rate_and_time_left() -> None:
    meter = ProgressMeter()
    assert meter.sample(0.0, 0, 1000).remaining_seconds is None
    progress = meter.sample(2.0, 200, 1000)
    assert (progress.bytes_per_second, progress.remaining_seconds) == (100.0, 8.0)
    assert meter.sample(4.0, 1000, 1000).remaining_seconds == 0.0


def test_a_stall_lowers_the_rate_and_a_step_that_begins_again_starts_anew() -> None:
    meter = ProgressMeter()
    meter.sample(0.0, 0, 1000)
    meter.sample(1.0, 500, 1000)
    meter.sample(2 + WINDOW_SECONDS, 500, 1000)
    assert meter.sample(3 + WINDOW_SECONDS, 500, 1000).bytes_per_second == 0.0
    assert meter.sample(4 + WINDOW_SECONDS, 10, 1000).remaining_seconds is None
