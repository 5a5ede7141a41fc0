"""Work side by side in processes that end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from landscape.errors import LandscapeError

T = TypeVar("T")
R = TypeVar("R")

_SECONDS = 0.5  # how often a worker looks whether it is still wanted


def side_by_side(work: Callable[[T], R], items: Sequence[T], *, workers: int) -> Iterator[R]:
    """Do some work on each item in processes of its own, and yield what comes of it.

    Args:
        work: a function of a module, with what pickles as arguments.
        items: what to work on.
        workers: how many processes.

    Yields:
        What the work returned, as it is done, in no order.

    Raises:
        LandscapeError: if a process was ended from outside.
        Exception: what the work raised, the first one; the other processes end at once.
    """
    # Spawned, not forked: a fork of a process in which torch has started threads can hang.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(workers, context, initializer=_serve, initargs=(stop,)) as pool:
        tasks = [pool.submit(work, item) for item in items]
        try:
            for task in as_completed(tasks):
                yield task.result()
        except BrokenProcessPool as error:
            msg = (
                "a process that trained or measured was ended from outside, perhaps because the "
                "memory was full: try --workers 1; what was done is kept"
            )
            raise LandscapeError(msg) from error
        finally:
            if not all(task.done() for task in tasks):
                for task in tasks:
                    task.cancel()
                stop.set()  # at once: whatever is half done goes on from its state another time


def _serve(stop: Any) -> None:
    """Prepare a worker: Ctrl-C is for the process that started it, and it ends with that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        while not stop.wait(_SECONDS):
            if parent is None or not parent.is_alive():
                break
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
