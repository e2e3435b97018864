"""What a job consists of: a scenario is a tree of named tasks, each leaf with one step.

A step is a plain async function ``step(context) -> result``. Its rules:

* it may run more than once (the process may die after its effect and before its record), so it finds or creates by
  ``context.key(...)``, and draws a fresh id only through ``context.remember``;
* what it returns is stored before the next step begins, and later steps read it with ``context.result_of``;
* it waits only through ``context.wait_until``, which ends at a deadline, on a cancel, and for a stale owner;
* it raises :class:`Skipped` when there is nothing to do, and a FailbackError when it failed.

Names, task ids and scenario names are those that Azure Site Recovery shows for the same operation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from failback.errors import ConfigurationError

if TYPE_CHECKING:
    from failback.configuration_server.jobs.context import StepContext

Result = Mapping[str, Any] | None
Step = Callable[["StepContext"], Awaitable[Result]]

NOT_STARTED = "NotStarted"
IN_PROGRESS = "InProgress"
SUCCEEDED = "Succeeded"
FAILED = "Failed"
CANCELLED = "Cancelled"
OTHER = "Other"
"""Task state of a skipped task; its description says ``Skipped``."""

FINAL_STATES = frozenset({SUCCEEDED, FAILED, CANCELLED})

TASK = "TaskDetails"
GROUP_TASK = "GroupTaskDetails"
JOB_TASK = "JobTaskDetails"


class Skipped(Exception):
    """Raised by a step that found nothing to do; the task ends as ``Other``, "Skipped", with the reason."""


@dataclass(frozen=True, slots=True)
class Task:
    """One row of a job. A group has children and no step of its own; ``name`` is unique within the job.

    ``restart_from`` names the task at which a restart begins when this one failed (empty: at this one): a failed
    power-off, for instance, cannot be repeated without a new freeze. ``cancellable`` False: a cancel that arrives while it
    runs takes effect after it (or never, when it was the last).
    """

    name: str
    friendly_name: str
    step: Step | None = None
    children: tuple[Task, ...] = ()
    task_id: str = ""
    task_type: str = TASK
    restart_from: str = ""
    cancellable: bool = True


@dataclass(frozen=True, slots=True)
class FollowUp:
    """A job that begins in the transaction that ends this one, so that no crash can fall between them."""

    scenario: str
    inputs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scenario:
    """``undo(context, reason)`` runs when the job failed or was cancelled (``reason`` is the state it ends in), before
    the row says so; it is recorded like a task and may run twice.
    """

    name: str
    friendly_name: str
    tasks: tuple[Task, ...]
    follow_up: FollowUp | None = None
    undo: Callable[[StepContext, str], Awaitable[None]] | None = None

    def __post_init__(self) -> None:
        names = [task.name for task, _ in self.rows()]
        if len(set(names)) != len(names):
            raise ConfigurationError(f"scenario {self.name} has two tasks of one name")

    def rows(self) -> Iterator[tuple[Task, str]]:
        """Every task in the order of execution, with the name of its group ("" at the top)."""
        for task in self.tasks:
            yield task, ""
            for child in task.children:
                yield child, task.name

    def leaves(self) -> list[Task]:
        return [task for task, _ in self.rows() if task.step is not None]

    def leaf(self, name: str) -> Task:
        return next(task for task in self.leaves() if task.name == name)

    def restarted(self, failed: str) -> list[str]:
        """Names of the leaves that a restart runs again when ``failed`` failed."""
        names = [task.name for task in self.leaves()]
        return names[names.index(self.leaf(failed).restart_from or failed) :]
