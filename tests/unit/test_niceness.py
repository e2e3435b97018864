"""Giving way: the rule, and the threads of a real process."""

import os
import subprocess
import sys

import pytest

from failback.errors import ConfigurationError
from failback.mobility import config as mobility_config
from failback.mobility.giving_way import Pressure, gives_way

YOUNG_AND_EMPTY = Pressure(0.02, 0.25)

IN_A_PROCESS = """
import os, threading, asyncio
from failback.mobility.giving_way import GivingWay, Pressure
begun, end = threading.Event(), threading.Event()
threading.Thread(target=lambda: (begun.set(), end.wait()), daemon=True).start()
begun.wait()
def all_of_them():
    return {os.getpriority(os.PRIO_PROCESS, int(task)) for task in os.listdir("/proc/self/task")}
async def main():
    felt = [Pressure(0.02, 0.2)]
    giving = GivingWay(os.getpriority(os.PRIO_PROCESS, 0) + 7)
    running = asyncio.create_task(giving.run(lambda: felt[0]))
    ordinary = all_of_them()
    async def until(wanted):
        async with asyncio.timeout(30):
            while all_of_them() != wanted:
                await asyncio.sleep(0.01)
    low = {value + 7 for value in ordinary}
    await until(low)
    felt[0] = Pressure(0.9, 0.2)
    await until(ordinary)
    felt[0] = Pressure(0.01, 0.2)
    await until(low)
    giving.insist()
    assert all_of_them() == ordinary
    felt[0] = None
    await asyncio.sleep(0.5)
    assert all_of_them() == ordinary
    running.cancel()
asyncio.run(main())
end.set()
print("well")
"""


def test_a_service_that_keeps_up_gives_way() -> None:
    assert gives_way(False, YOUNG_AND_EMPTY)
    assert gives_way(True, YOUNG_AND_EMPTY)


@pytest.mark.parametrize("pressure", [Pressure(0.31, 0.2), Pressure(0.02, 0.71)])
def test_a_filling_ring_or_old_writes_end_it(pressure: Pressure) -> None:
    assert not gives_way(True, pressure)


@pytest.mark.parametrize("pressure", [Pressure(0.2, 0.2), Pressure(0.02, 0.6)])
def test_between_the_thresholds_it_stays_as_it_is(pressure: Pressure) -> None:
    assert gives_way(True, pressure)
    assert not gives_way(False, pressure)


def test_every_thread_of_the_process_follows() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout == "well\n", done.stderr


def test_the_configuration_refuses_a_niceness_that_there_is_not(tmp_path) -> None:
    path = tmp_path / "mobility.toml"
    path.write_text('niceness = 20\n[configuration_server]\nurl = "https://a:1"\nca_file = "/a"\n')
    with pytest.raises(ConfigurationError, match="niceness"):
        mobility_config.load(path)


def test_a_process_that_may_not_return_never_gives_way() -> None:
    program = (
        "import asyncio, os\n"
        "from failback.mobility.giving_way import GivingWay, Pressure\n"
        "giving = GivingWay(os.getpriority(os.PRIO_PROCESS, 0) + 7)\n"
        "asyncio.run(asyncio.wait_for(giving.run(lambda: Pressure(0.0, 0.0)), 10))\n"  # ends at once: nothing to decide
        "print(os.getpriority(os.PRIO_PROCESS, 0))\n"
    )
    command = ["setpriv", "--bounding-set", "-sys_nice", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout.strip().splitlines()[-1:] == [str(os.getpriority(os.PRIO_PROCESS, 0))], done.stderr
