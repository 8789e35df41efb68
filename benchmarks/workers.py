"""Other processes, to compile or to count in."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor


def pool(processes: int, ignore_interrupts: bool = False) -> ProcessPoolExecutor:
    """New processes, which end with this one, also where it is killed.

    Of themselves they would wait for work for ever, each with its context and its memory on a GPU.

    ignore_interrupts: Ctrl-C is this process's alone.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(ignore_interrupts,))


def _begin(ignore_interrupts):
    if ignore_interrupts:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
