"""What every thread and every task of the event loop is doing, as text."""

import asyncio
import sys
import threading
import traceback
from collections.abc import Iterator


def text() -> str:
    """Stacks of threads, then of the running loop's tasks, each with its name. Called on the event loop."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        yield f"thread {names.get(ident, 'unknown')} ({ident}):"
        yield "".join(traceback.format_stack(frame))
    for task in asyncio.all_tasks():
        yield f"task {task.get_name()}:"
        # Not print_stack(): a coroutine between two lines has none, which it takes amiss (Python 3.11).
        for frame in task.get_stack():
            yield f'  File "{frame.f_code.co_filename}", line {frame.f_lineno}, in {frame.f_code.co_qualname}'
        yield ""
