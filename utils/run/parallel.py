"""Work beside the network: threads that finish its results, and worker processes, of loaders and of pools."""
import multiprocessing
import os
import platform
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import cv2
import torch
from threadpoolctl import threadpool_limits

from utils.run import distributed
from utils.run.errors import UserError

BOOT, TASKS = Path('/proc/sys/kernel/random/boot_id'), Path('/proc/self/task')
WATCH = 0.5  # seconds between two looks of a worker at whether its parent lives; a thread may take as long to end
WORKERS_WAIT = hasattr(signal, 'sigtimedwait')  # not on macOS
_affinities: list[frozenset[int]] = []  # of the processes of this job on this machine, once they have told
Item = TypeVar('Item')
Result = TypeVar('Result')


def available_cores() -> int:
    """CPU cores that this process may use: those of its own, and its share of those that others of its job use too."""
    mine = _affinity()
    if _affinities:
        return max(1, int(sum(Fraction(1, sum(core in other for other in _affinities) or 1) for core in mine)))
    return max(1, len(mine) // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))


def share_cores() -> None:
    """Tell the other processes of this job which cores this one may use, as those of SLURM differ; all call it."""
    if distributed.world_size() > 1:
        machine = BOOT.read_text() if BOOT.is_file() else platform.node()  # containers may have any name
        told = distributed.gather_objects((machine, _affinity()))
        _affinities[:] = [cores for where, cores in told if where == machine]


def _affinity() -> frozenset[int]:
    return frozenset(os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else range(os.cpu_count() or 1))


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None,
               limit: int | None = None) -> Iterator[Result]:
    """``map`` in threads: ``items`` (e.g. a network) goes on meanwhile, but waits at ``limit`` items in flight.

    By default there is a thread for each core, and twice as many items in flight. No thread outlives this: one that is
    ending may hold a lock of OpenCV, for which a loader worker that forks then would wait for ever.
    """
    threads = threads or available_cores()
    limit = limit or 2 * threads
    own: list[Path] = []  # on Linux, where processes fork
    pool = ThreadPoolExecutor(threads, initializer=lambda: own.append(TASKS / str(threading.get_native_id())))
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
        patience = time.monotonic() + WATCH
        while any(map(Path.exists, own)) and time.monotonic() < patience:
            time.sleep(0.0005)


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that start when they are first needed, on one core each. Raises UserError if one was killed."""
    spawn = multiprocessing.get_context('spawn')  # forked copies of a process with threads or a CUDA device may hang
    pool = ProcessPoolExecutor(workers, spawn, _start_pool_worker)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UserError('a worker process was killed, probably for lack of memory; rerun with fewer workers '
                        '(--workers, or crf_workers).') from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_pool_worker() -> None:
    start_worker()
    threadpool_limits(1)


@contextmanager
def starting_workers() -> Iterator[None]:
    """A block that starts loader workers: SIGTERM does not reach them before ``start_worker`` does."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM} if WORKERS_WAIT else ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(*_: int) -> None:
    """In a worker, on one core: leave signals, which reach all processes, to the main one, whose last step needs this.

    A SIGTERM of the main process, which is how it ends its workers, counts, and so does its death.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if WORKERS_WAIT:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        if not WORKERS_WAIT:
            parent.join()
        elif (received := signal.sigtimedwait({signal.SIGTERM}, WATCH)) is not None and received.si_pid == parent.pid:
            break
    os._exit(0)
