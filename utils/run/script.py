"""How a script runs and how it ends: on a mistake of the user, a signal, a closed pipe, or an unexpected error."""
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from types import FrameType

from utils.run import distributed
from utils.run.errors import CANNOT_WRITE, DENIED, EXIT_STOPPED, EXIT_UNREAD, EXIT_USER_ERROR, UserError
from utils.run.log import paint

SIGNALS = (signal.SIGTERM, signal.SIGINT)  # they ask a run to stop: of a scheduler, and of Ctrl-C
LAUNCHER = 5  # seconds in which PyTorch's launcher sees that a process is dead, which it asks ten times a second
LESS_MEMORY = ('lower train_batch_size (val_batch_size or --batch-size, where nothing is trained), set precision: '
               'bf16, a smaller loss_chunk or model_kwargs.upsample: false, or end what else runs on the GPU.')
# how PyTorch and the libraries under it say that a GPU has too little memory; most that cannot start lack it too
NO_MEMORY = re.compile(r'(CUDA|XPU|MPS backend|NCCL)\b.*(out of memory|Failed to CUDA \w*alloc)|'
                       r'(CUBLAS|CUDNN)_STATUS_(\w*ALLOC\w*|NOT_INITIALIZED)|[Uu]nable to find an engine', re.DOTALL)


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


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main(); what a user can fix ends in one sentence on stderr and exit code 2.

    That is a UserError, a full disk, a file that may not be read or written, too little memory of a GPU. SIGTERM and
    SIGINT end in one sentence and code 75; training saves its step first. An output that nobody reads any longer
    (``| head -1``) ends in silence and code 141. Anything unexpected keeps its traceback.
    """
    os.environ['MPLBACKEND'] = 'agg'  # that of a notebook may not be installed here, and no plot needs a display
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')  # names of files need not be UTF-8
    try:
        with handled(stop_at_once, signal.SIGTERM), handled(stop, signal.SIGINT):
            try:
                main()
            except SystemExit:  # of --help
                sys.stdout.flush()
                raise
            except (ConnectionError, EOFError, RuntimeError):  # of a loader worker that was killed, it may be
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises the same at any moment
                raise  # what it raised by now is caught below
            sys.stdout.flush()
        distributed.leave()
    except (Exception, StoppedError) as failure:
        code, message = _ending(failure)
        if distributed.is_launched():
            _leave_job(code, message or (traceback.format_exc() if code == 1 else ''))
        if code == 1:
            raise
        if message:
            print(message, file=sys.stderr)
        raise SystemExit(code) from None


def _leave_job(code: int, message: str) -> None:
    """End one of several processes at once: the first that fails speaks for all, and others may be dead."""
    first, joined = distributed.first_to_fail(), distributed.world_size() > 1
    if code == 1 or not (first or joined):  # the launcher ends this one meanwhile: another may be dead, or has to speak
        time.sleep(LAUNCHER)
    if first and message:
        print(message.rstrip(), file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _ending(failure: BaseException) -> tuple[int, str]:
    """The exit code of a failure, 1 for what is unexpected, and its sentence, '' for none."""
    if isinstance(failure, StoppedError):
        return EXIT_STOPPED, str(failure)
    if isinstance(failure, UserError):
        text = sentence(failure)
    elif isinstance(failure, BrokenPipeError) and _unread():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still flushes at its end
        return EXIT_UNREAD, ''
    elif _lost_worker(failure):
        text = ('a loader worker was killed, for lack of memory or of shared memory (/dev/shm; of a container by '
                '--shm-size): raise it or lower num_workers, and rerun: a training resumes.')
    elif isinstance(failure, RuntimeError) and NO_MEMORY.search(str(failure)):
        text = f'the GPU has too little memory ({str(failure).splitlines()[0].partition(". ")[0]}); {LESS_MEMORY}'
    elif isinstance(failure, OSError) and failure.errno in CANNOT_WRITE:
        hint = 'change its permissions' if failure.errno in DENIED else 'free some space'
        where = f' ({failure.filename})' * bool(failure.filename)
        text = f'cannot read or write: {failure.strerror}{where}; {hint} or choose another folder.'
    else:
        return 1, ''
    return EXIT_USER_ERROR, f'{paint("error:", sys.stderr, "red")} {text}'


def sentence(error: UserError) -> str:
    """The sentence of an error, also when a loader worker sent it with its traceback in front."""
    text = str(error)
    return re.split(r'^[\w.]+Error: ', text, flags=re.MULTILINE)[-1].strip() if 'Original Traceback' in text else text


def _lost_worker(error: BaseException) -> bool:
    """Whether a loader worker was killed, or found no shared memory."""
    if isinstance(error, RuntimeError):
        return re.search(r'DataLoader worker .*(killed by signal|exited unexpectedly)|</torch_', str(error)) is not None
    return isinstance(error, (ConnectionError, EOFError)) and any(  # it died while it handed over a tensor
        frame.f_code.co_filename.endswith('resource_sharer.py') for frame, _ in traceback.walk_tb(error.__traceback__))


def _unread() -> bool:
    """Whether nobody is left to read what is printed."""
    if not hasattr(select, 'poll'):  # Windows
        return True
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
