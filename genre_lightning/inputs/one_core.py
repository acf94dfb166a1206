"""Threads that each compute on one core, for work that splits into many equal pieces."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def one_core_threads(workers: int, name: str) -> ThreadPoolExecutor:
    """Start a thread pool in which PyTorch computes on one core per thread.

    Workers that each use all cores mostly wait for each other, and an operation that is split over
    all cores waits for the slowest one.

    Args:
        workers: number of threads.
        name: prefix of the threads' names.
    """
    pool = ThreadPoolExecutor(
        workers,
        thread_name_prefix=name,
        initializer=_use_one_core,
        initargs=(torch.get_num_threads(),),
    )
    # All workers start before this returns: a thread that is started elsewhere while a worker sets
    # its number of cores would inherit that number.
    all_started = threading.Barrier(workers)
    for future in [pool.submit(all_started.wait) for _ in range(workers)]:
        future.result()
    return pool


def _use_one_core(num_threads: int) -> None:
    """Let PyTorch use one core in this thread, and ``num_threads`` in threads that start later."""
    torch.set_num_threads(1)
    # This also sets the default of threads that start later; another thread resets the default.
    thread = threading.Thread(target=torch.set_num_threads, args=(num_threads,))
    thread.start()
    thread.join()
