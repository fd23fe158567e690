"""Jobs in a process of their own, whose memory goes back when it ends, and whose settings are its own."""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from support.cli import UserError


def end_with_parent() -> None:
    """End this process when the process that started it has ended, even if that was killed."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def own_processes(
    count: int | None = 1,
    start_method: str | None = None,
    start: Callable = end_with_parent,
    arguments: tuple = (),
) -> Iterator[ProcessPoolExecutor]:
    """An executor of `count` processes (None: one a core), each of which first calls start(*arguments).

    The start method is one of multiprocessing's: "spawn" starts a new Python, None is what the system usually
    does. Raises UserError if a process is killed. When the block is left, jobs that wait are dropped.
    """
    pool = ProcessPoolExecutor(count, multiprocessing.get_context(start_method), start, arguments)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UserError("a process of this script was killed, perhaps for want of memory") from error
    finally:
        pool.shutdown(cancel_futures=True)


def in_own_process(job: Callable, *arguments, start_method: str | None = None) -> Any:
    """job(*arguments), computed by another process. What it raises is raised here."""
    with own_processes(start_method=start_method) as pool:
        return pool.submit(job, *arguments).result()


@contextlib.contextmanager
def function_in_own_process(make: Callable, *arguments) -> Iterator[Callable[[], None]]:
    """The function that make(*arguments) returns. It is made, and then called, in another, new Python."""
    with own_processes(start_method="spawn") as pool:
        pool.submit(keep, make, *arguments).result()
        yield lambda: pool.submit(call_kept).result()


def keep(make: Callable, *arguments) -> None:
    """Make a function, and keep it in this process for call_kept()."""
    global kept
    kept = make(*arguments)


def call_kept() -> None:
    kept()
