"""An event loop with virtual time on which whole processes live and die.

Nothing sleeps: when no callback is ready the clock jumps to the next timer. Work for executors runs inside the loop after
a random delay, in order where the executor has one thread. Every callback belongs to the :class:`Process` in whose context
it was made; callbacks of a dead process never run again, so that a kill at any await point runs no ``finally``. A kill
inside synchronous code raises :class:`Killed`, and the file system refuses the unwinding code everything (``files``).
"""

from __future__ import annotations

import asyncio
import heapq
import random
from asyncio import base_events, events
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from contextvars import Context, ContextVar, copy_context
from typing import Any

from failback.transport.door import Visitor
from failback.transport.identity import PeerIdentity


class Killed(BaseException):
    """Unwinds synchronous code of a process that was killed in the middle of it."""


class Stuck(Exception):
    """Nothing is ready and no timer is set: the world would wait for ever."""


class Process:
    """One life of one role. ``fuse``: it dies at its so many-th passage of a fault point."""

    def __init__(self, name: str, identity: PeerIdentity) -> None:
        self.name = name
        self.identity = identity
        self.alive = True
        self.fuse = 0
        self.fuse_at = ""
        self.descriptors: set[int] = set()
        self.tasks: set[asyncio.Task[Any]] = set()
        """Those under way. Of a dead process they are kept for ever: collecting them would run their ``finally``."""
        self.context = copy_context()
        self.context.run(CURRENT.set, self)

    def new_context(self) -> Context:
        return self.context.copy()


CURRENT: ContextVar[Process | None] = ContextVar("process", default=None)


def check_alive() -> None:
    process = CURRENT.get()
    if process is not None and not process.alive:
        raise Killed


def _is_dead(context: Context) -> bool:
    process = context.get(CURRENT)
    return process is not None and not process.alive


class _Handle(events.Handle):
    __slots__ = ()

    def _run(self) -> None:
        if not _is_dead(self._context):  # type: ignore[attr-defined]
            super()._run()


class _Timer(events.TimerHandle):
    __slots__ = ()

    def _run(self) -> None:
        if not _is_dead(self._context):  # type: ignore[attr-defined]
            super()._run()


class SimulatedLoop(base_events.BaseEventLoop):
    """``network`` gives connections; ``delay`` how long work in a thread takes."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance
        self.now = 1000.0
        self.steps = 0
        self.network: Any = None
        self._selector = self
        self._free_at: dict[Executor | None, float] = {}
        self.set_task_factory(_make_task)

    # --- time -------------------------------------------------------------------------------------------------------

    def time(self) -> float:
        return self.now

    def select(self, timeout: float | None) -> list[object]:
        if timeout is None:
            raise Stuck("nothing is ready and nothing is scheduled")
        self.steps += 1
        if timeout > 0:
            self.now += timeout + 1e-9
        return []

    def _process_events(self, event_list: list[object]) -> None:
        return

    def _write_to_self(self) -> None:
        return

    def _call_soon(self, callback: Callable[..., object], args: Any, context: Context | None) -> events.Handle:
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Timer:
        timer = _Timer(when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    # --- threads ----------------------------------------------------------------------------------------------------

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future = self.create_future()
        begin = max(self.now, self._free_at.get(executor, 0.0)) if executor is not None else self.now
        at = begin + self._work_seconds()
        self._free_at[executor] = at
        starts_anyway = self.chance.random() < 0.5
        self.call_at(at, self._work, future, starts_anyway, func, args)
        return future

    def _work_seconds(self) -> float:
        roll = self.chance.random()
        return roll * 0.002 if roll < 0.9 else roll * 0.02 if roll < 0.995 else 1.5

    def _work(self, future: asyncio.Future[Any], starts_anyway: bool, func: Callable[..., Any], args: Any) -> None:
        if future.cancelled() and not starts_anyway:
            return
        try:
            result = func(*args)
        except Killed:
            return
        except BaseException as error:
            if not future.done():
                future.set_exception(error)
            return
        if not future.done():
            future.set_result(result)

    # --- links ------------------------------------------------------------------------------------------------------

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        return await self.network.connect(protocol_factory, port)

    async def open_door(self, factory: Any, _host: str, port: int, *_: Any) -> Any:
        """In the place of :func:`failback.transport.door.open_door`."""
        listener: Any = None

        def protocol() -> Any:
            return factory(Visitor(listener, "simulated"))

        listener = self.network.listen(protocol, port)
        return listener

    def spawn(self, process: Process, main: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run the coroutine as the process's main task."""
        task = self.create_task(main, context=process.new_context())
        task.add_done_callback(self._spawned_ended)
        return task

    def _spawned_ended(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.call_exception_handler({"message": "a task failed", "exception": error})


def _make_task(loop: asyncio.AbstractEventLoop, coro: Any, context: Context | None = None) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, context=context)
    process = context.get(CURRENT) if context is not None else CURRENT.get()
    if process is not None:
        process.tasks.add(task)
        task.add_done_callback(process.tasks.discard)
    return task


class InlineExecutor(Executor):
    """Does the work at once, in the caller."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future
