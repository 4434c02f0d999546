"""Signals that ask a run to stop: SIGTERM, of a scheduler, and SIGINT, of Ctrl-C."""
from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from utils.run import distributed
from utils.run.errors import EXIT_STOPPED

SIGNALS = (signal.SIGTERM, signal.SIGINT)
WORKERS_WAIT = hasattr(signal, 'sigtimedwait')  # not on macOS


class StoppedError(BaseException):
    """A signal asked the run to stop. Like KeyboardInterrupt it passes every ``except Exception``."""


def stop(number: int | None, frame: FrameType | None = None) -> None:
    """Raise StoppedError, which names the signal (None: that of another process)."""
    name = 'another process' if number is None else signal.Signals(number).name
    raise StoppedError(f'stopped by {name}; start the same command again to go on')


def stop_at_once(number: int, frame: FrameType | None = None) -> None:
    """Handler that ends the process there and then; the next start does again what was half done.

    An error of a handler may come where Python cannot pass it on, such as in a hook of the fork of a loader
    worker: it would be lost, and a lock of the hook stay locked.
    """
    try:
        stop(number)
    except StoppedError as error:
        if distributed.is_main():
            os.write(2, f'{error}\n'.encode())
        os._exit(EXIT_STOPPED)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None], *signals: signal.Signals) -> Iterator[None]:
    """A block in which signals call ``handler``; outside of the main thread, which gets none, as before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(number, signal.signal(number, handler)) for number in signals]
    try:
        yield
    finally:
        for number, previous in before:
            signal.signal(number, previous)


@contextmanager
def starting_workers() -> Iterator[None]:
    """A block that starts loader workers: SIGTERM does not reach them before ``guard_worker`` does."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM} if WORKERS_WAIT else ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def guard_worker() -> None:
    """In a loader worker: leave signals to the main process, which still needs this worker for its last step.

    Ctrl-C, ``timeout`` and schedulers signal all processes of a job. A SIGTERM of the main process, which
    is how it ends its workers, counts, and so does its death.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if WORKERS_WAIT:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, 5)  # seconds
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)
