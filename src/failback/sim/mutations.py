"""Mistakes put into the product on purpose: a simulation that does not notice them proves nothing.

Each mutation breaks one rule that data depends on, by replacing one function while worlds run. ``python -m
failback.sim.mutations [NAME ...]`` runs worlds with each mistake until one fails: status 0 when every mistake was noticed.
``python -m failback.sim --mutation NAME --seed N --story`` looks at one. A mutation that is not noticed is a weakness of the
model: mend the model.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from failback.journal import applier, redo, undo, unproven
from failback.journal.journal import Journal
from failback.journal.torn_tail import Bound
from failback.master_target import intake
from failback.master_target.witness import WitnessFile
from failback.mobility import gaps, settling, stream
from failback.mobility.capture import block_maps, rereading
from failback.mobility.capture.session import CaptureSession
from failback.model.stream import GapCause, Position
from failback.process_server import spool
from failback.sim import kernel
from failback.sim.capture import SimulatedSession

CHUNK = 25
Replacement = tuple[Any, str, Any]


class _Without:
    """The module :mod:`os` in which some calls do nothing."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def __getattr__(self, name: str) -> Any:
        return (lambda *_: None) if name in self._names else getattr(os, name)


class _Forgetful(block_maps.ByteMap):
    def set_run(self, first: int, count: int) -> None:
        return


def _release_before_spooled() -> Sequence[Replacement]:
    collect = CaptureSession.collect

    def collected(self: CaptureSession, limit_bytes: int, *, up_to: int | None = None) -> Any:
        found = collect(self, limit_bytes, up_to=up_to)
        if found is not None:
            self._ring.release(found.end_position)
        return found

    return [(CaptureSession, "collect", collected)]


def _pending_not_set() -> Sequence[Replacement]:
    build = SimulatedSession.__init__

    def built(self: SimulatedSession, machine: kernel.Machine) -> None:
        build(self, machine)
        self._pending = _Forgetful(machine.pending)  # type: ignore[arg-type]

    return [(SimulatedSession, "__init__", built)]


def _pending_cleared_early() -> Sequence[Replacement]:
    """A re-read counts as durable as soon as it is read."""
    reread = CaptureSession.reread

    def early(self: CaptureSession, limit_blocks: int) -> Any:
        found = reread(self, limit_blocks)
        if found is not None and found.ok:
            self._clear_pending(found)
        return found

    return [(CaptureSession, "reread", early)]


def _undo_late() -> Sequence[Replacement]:
    """The old blocks become durable with the applied position, after the disks were overwritten."""
    settle = applier.Applier._settle

    def settled(self: applier.Applier, point: Any) -> None:
        if self._file is not None:
            self._file.sync()
        settle(self, point)

    return [(undo.Preserver, "sync", lambda self: None), (applier.Applier, "_settle", settled)]


def _landed_before_sync() -> Sequence[Replacement]:
    def acknowledged(journal: Journal, items: Sequence[Any]) -> Position:
        for item in items:
            journal.append(item)
        journal.sync_later = True  # type: ignore[attr-defined]
        return journal._appended

    step = Journal.apply_step

    def stepped(self: Journal) -> bool:
        if getattr(self, "sync_later", False):
            self.sync()
        return step(self)

    return [(intake, "_append", acknowledged), (Journal, "apply_step", stepped)]


def _unlanded_forgotten() -> Sequence[Replacement]:
    settle = settling.settle

    def settled(session: CaptureSession, spooled: Any, landed: Any) -> None:
        settle(session, spooled, landed)
        if spooled is not None:
            for place in session._places:
                session._unlanded.clear_generations(place.base_block, place.blocks, 1, 65535)

    return [(stream, "settle", settled)]


def _unproven_until_next_start() -> Sequence[Replacement]:
    """What was cut counts until the next start only, as if it had been one record that nobody had remade."""

    def begun(catalogue: Any, synced_ordinal: int, cut: Bound) -> None:
        unproven._keep(catalogue, synced_ordinal, Bound(cut.ordinal and synced_ordinal + 1))

    return [(unproven, "begin", begun)]


def _pace_at_once() -> Sequence[Replacement]:
    def followed(self: applier.Applier) -> None:
        self._pace = self._pace_seconds()

    return [(applier.Applier, "_follow_policy", followed)]


def _witness_without_epochs() -> Sequence[Replacement]:
    return [
        (WitnessFile, "expect_epoch", lambda self, epoch: None),
        (WitnessFile, "keep", lambda self, witness, *, now=False: None),
    ]


@dataclass(frozen=True, slots=True)
class Mutation:
    breaks: str
    replacements: Callable[[], Sequence[Replacement]]
    worlds: int = 300
    """It has to be caught within so many worlds."""
    first: int = 1
    """From this one on: what takes several faults in a row is looked for where it was seen."""


def _without(owner: Any, *names: str) -> Callable[[], Sequence[Replacement]]:
    return lambda: [(owner, "os", _Without(*names))]


MUTATIONS: dict[str, Mutation] = {
    "release-before-spooled": Mutation("the ring's room goes back before the records are spooled (D5)", _release_before_spooled),
    "pending-not-set": Mutation("a block under re-read is neither dirty nor pending (D8)", _pending_not_set),
    "pending-cleared-early": Mutation("a re-read counts as durable before it is spooled (D8)", _pending_cleared_early),
    "spool-not-synced": Mutation("the spool acknowledges without fdatasync", _without(spool, "fdatasync")),
    "redo-not-synced": Mutation("the redo log acknowledges without fdatasync", _without(redo, "fdatasync")),
    "undo-not-synced": Mutation("undo is called durable without fdatasync", _without(undo, "fdatasync")),
    "undo-after-overwrite": Mutation("old blocks become durable after they were overwritten (D3)", _undo_late),
    "landed-before-sync": Mutation("landed is acknowledged before the journal's sync", _landed_before_sync),
    "overlaps-forgotten": Mutation(
        "overlapping writes are not read again (D10)",
        lambda: [(kernel.Machine, "mark_overlap", lambda self, write: None)]),
    "no-grace": Mutation(
        "a re-read does not wait for older writes (D8)",
        lambda: [(rereading, "older_writes_done", lambda *_: True)],
    ),
    "unlanded-forgotten": Mutation("blocks leave the unlanded map when they are spooled (D6)", _unlanded_forgotten),
    "gaps-denied": Mutation("batches say that they are consistent whatever happened (D9)",
        lambda: [(gaps.GapRule, "decide", lambda self, *_, **__: GapCause.NONE)]),
    "disks-not-flushed": Mutation("the applied place is declared without a flush of the disks",
        lambda: [(applier.Target, "flush", lambda self: None)]),
    "torn-tail-forgotten": Mutation("a cut tail of the redo holds points back only until the next start (D13)",
        _unproven_until_next_start, 25, 76),
    "pace-followed-at-once": Mutation("a new policy makes points while the disks are ahead (D13)", _pace_at_once),
    "copies-trusted": Mutation("the master target remembers nothing of its journals beside them (D7)", _witness_without_epochs),
}  # fmt: skip


@contextmanager
def made(name: str) -> Iterator[None]:
    """The product with this mistake in it."""
    with ExitStack() as stack:
        for owner, attribute, value in MUTATIONS[name].replacements():
            stack.callback(setattr, owner, attribute, getattr(owner, attribute))
            setattr(owner, attribute, value)
        yield


def noticed(name: str) -> tuple[bool, str]:
    """Whether a world failed that holds without the mistake, and what it said. In fresh processes: dead worlds keep memory."""
    said = ""
    mutation = MUTATIONS[name]
    for at in range(mutation.first, mutation.first + mutation.worlds, CHUNK):
        done = _worlds("--mutation", name, "--most-failures", "1", "--first", str(at), "--count", str(CHUNK))
        said = done.stdout + done.stderr
        failed = re.search(r"^FAILED seed (\d+)", said, re.MULTILINE)
        if failed is not None:
            plain = _worlds("--seed", failed[1])
            return plain.returncode == 0, said if plain.returncode == 0 else f"seed {failed[1]} fails by itself"
        if done.returncode:
            return False, said
    return False, said


def _worlds(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "failback.sim", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def main() -> int:
    unnoticed = 0
    for name in sys.argv[1:] or MUTATIONS:
        seen, said = noticed(name)
        found = next((line for line in said.splitlines() if line.startswith("FAILED")), "")
        verdict = found[:200] if seen else f"NOT NOTICED by {MUTATIONS[name].worlds} worlds: {said[-200:]}"
        print(f"{name} ({MUTATIONS[name].breaks}): {verdict}", flush=True)
        unnoticed += not seen
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
