"""Signals that ask a run to stop: SIGTERM, of a scheduler, and SIGINT, of Ctrl-C."""
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from utils.run import distributed
from utils.run.errors import EXIT_STOPPED

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(BaseException):
    """A signal asked the run, or another process of it (None), to stop. It passes every ``except Exception``."""

    def __init__(self, number: int | None) -> None:
        name = 'another process' if number is None else signal.Signals(number).name
        super().__init__(f'stopped by {name}; rerun the same command to resume')


def stop(number: int | None, frame: FrameType | None = None) -> None:
    raise StoppedError(number)


def stop_at_once(number: int, frame: FrameType | None = None) -> None:
    """Handler that ends the process there and then.

    An error raised here, in a hook of the fork of a loader worker, would be lost, and a lock of the hook stay locked.
    """
    if distributed.is_main():
        os.write(2, f'{StoppedError(number)}\n'.encode())
    os._exit(EXIT_STOPPED)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None], *signals: signal.Signals) -> Iterator[None]:
    """A block in which signals call ``handler``; outside of the main thread, which gets none, as before."""
    here = signals if threading.current_thread() is threading.main_thread() else ()
    before = [(number, signal.signal(number, handler)) for number in here]
    try:
        yield
    finally:
        for number, previous in before:
            signal.signal(number, previous)
