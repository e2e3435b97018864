"""All scenarios over one world: what the job engine is made with."""

from __future__ import annotations

from failback.configuration_server.jobs.scenario import Scenario
from failback.configuration_server.workflows import (
    app_consistent_point,
    cancel_failback,
    change_point,
    commit,
    disable,
    disk_changes,
    failback,
    finalize,
    move,
    repair,
    reprotect,
)
from failback.configuration_server.workflows.world import World


def scenarios(world: World) -> dict[str, Scenario]:
    made = (
        reprotect.scenario(world),
        finalize.scenario(world),
        repair.scenario(world),
        move.scenario(world),
        disk_changes.scenario(world),
        failback.scenario(world),
        commit.scenario(world),
        change_point.scenario(world),
        cancel_failback.scenario(world),
        app_consistent_point.scenario(world),
        disable.scenario(world),
    )
    return {each.name: each for each in made}
