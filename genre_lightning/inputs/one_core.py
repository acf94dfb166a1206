"""Threads that each compute on one core, for work that falls into many equal pieces."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def one_core_threads(workers: int, name: str) -> ThreadPoolExecutor:
    """Threads on each of which PyTorch computes alone.

    Workers that each compute on every core wait for each other most of the time, and one operation
    that is shared by all cores waits for the slowest of them.

    Args:
        workers: how many.
        name: of the threads.
    """
    pool = ThreadPoolExecutor(
        workers,
        thread_name_prefix=name,
        initializer=_take_one_core,
        initargs=(torch.get_num_threads(),),
    )
    # All start before any works: a thread that somebody else starts while one of them sets its
    # number would take that number over.
    begun = threading.Barrier(workers)
    for future in [pool.submit(begun.wait) for _ in range(workers)]:
        future.result()
    return pool


def _take_one_core(others: int) -> None:
    """Let PyTorch compute on one core in this thread, and in others on as many as before."""
    torch.set_num_threads(1)
    # That also set the default of threads that start later: a thread of its own sets it back.
    thread = threading.Thread(target=torch.set_num_threads, args=(others,))
    thread.start()
    thread.join()
