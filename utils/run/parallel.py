"""Work beside the network: threads that finish its results, and processes for what Python runs on one core."""
from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TypeVar

import cv2
import torch
from threadpoolctl import threadpool_limits

from utils.run import distributed
from utils.run.errors import UserError

BOOT = Path('/proc/sys/kernel/random/boot_id')
_affinities: list[frozenset[int]] = []  # of the processes of this job on this machine, once they have told
Item = TypeVar('Item')
Result = TypeVar('Result')


def available_cores() -> int:
    """CPU cores that this process may use: those of its own, and its share of those that others of its job use too.

    A job whose processes were not started in one affinity, such as the tasks of SLURM, has told it by ``share_cores``.
    """
    mine = _affinity()
    if _affinities:
        return max(1, int(sum(Fraction(1, sum(core in other for other in _affinities) or 1) for core in mine)))
    return max(1, len(mine) // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))


def share_cores() -> None:
    """Tell the other processes of this job on this machine which cores this one may use; all of them call it."""
    if distributed.world_size() == 1:
        return
    machine = BOOT.read_text() if BOOT.is_file() else platform.node()  # containers may have any name
    _affinities[:] = [cores for where, cores in distributed.gather_objects((machine, _affinity())) if where == machine]


def _affinity() -> frozenset[int]:
    cores = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else range(os.cpu_count() or 1)
    return frozenset(cores)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], threads: int,
               limit: int) -> Iterator[Result]:
    """``map`` in threads: ``items`` goes on (e.g. a network) while its earlier results are worked on.

    Args:
        function: called with each item in one of the threads.
        items: iterated in the calling thread.
        limit: items in flight at most; at the limit ``items`` waits.

    Returns:
        The results, in order. What ``function`` raises ends the iteration with that error.
    """
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= limit:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of ``size`` items, the last one of what is left."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that start when they are first needed, on one core each.

    They are spawned: forked copies of a process with threads or a CUDA device may hang.

    Raises:
        UserError: one was killed.
    """
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context('spawn'), _start_worker)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UserError('a worker process was killed, probably for lack of memory; rerun with fewer workers '
                        '(--workers, or crf_workers).') from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    threadpool_limits(1)


def _end_with_parent() -> None:
    """Wait until the main process is gone: killed, it cannot tell its workers, who would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
