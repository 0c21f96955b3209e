"""Starting a coroutine at once: what need not wait ends where it was started, without a task and a turn of the loop.

Python 3.12 has this (`asyncio.Task(eager_start=True)`). For 3.11 it is built here out of a first step that is run by
hand and a task for the rest. `asyncio.timeout` and `asyncio.TaskGroup` ask for the running task in that first step too:
they get a stand-in that hands everything on to the task as soon as there is one.
"""

import asyncio
import contextvars
import sys
from collections.abc import Coroutine, Generator
from typing import Any

__all__ = ["start"]

if sys.version_info >= (3, 12):

    def start(run: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> "asyncio.Task[None] | None":
        """Run `run` as far as it goes without waiting; the task of what is left, or None if it has ended."""
        task = asyncio.Task(run, loop=loop, eager_start=True)
        return None if task.done() else task

else:

    class _Early:
        """The task, as far as whoever asks before it exists is concerned."""

        __slots__ = ("task",)

        def __init__(self) -> None:
            self.task: asyncio.Task[None] | None = None

        def cancel(self, msg: object = None) -> bool:
            return self.task is not None and self.task.cancel(msg)

        def cancelling(self) -> int:
            return self.task.cancelling() if self.task is not None else 0

        def uncancel(self) -> int:
            return self.task.uncancel() if self.task is not None else 0

        def done(self) -> bool:
            return self.task is not None and self.task.done()

    class _Rest(Coroutine[Any, Any, None]):
        """What is left of a coroutine that has been started: as if a task had run its first step.

        A class and not a coroutine of its own, because an error thrown in before the first step must reach `run`.
        """

        __slots__ = ("_first", "_run")

        def __init__(self, run: Coroutine[Any, Any, None], waits_for: Any) -> None:
            # Any: what a coroutine yields to its task, a future or None
            self._run = run
            self._first: list[Any] = [waits_for]

        def send(self, value: Any) -> Any:
            return self._first.pop() if self._first else self._run.send(value)

        def throw(self, *error: Any) -> Any:
            self._first.clear()
            return self._run.throw(*error)

        def close(self) -> None:
            self._run.close()

        def __await__(self) -> Generator[Any, Any, None]:
            raise TypeError("for a task alone")

    def start(run: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> "asyncio.Task[None] | None":
        """Run `run` as far as it goes without waiting; the task of what is left, or None if it has ended."""
        if asyncio.current_task(loop) is not None:  # called by a task: its own step must end first
            return loop.create_task(run)
        early, context = _Early(), contextvars.copy_context()
        asyncio.tasks._enter_task(loop, early)  # type: ignore[arg-type]
        try:
            waits_for = context.run(run.send, None)
        except (StopIteration, asyncio.CancelledError):
            return None
        finally:
            asyncio.tasks._leave_task(loop, early)  # type: ignore[arg-type]
        early.task = loop.create_task(_Rest(run, waits_for), context=context)
        return early.task
