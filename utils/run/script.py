"""How a script runs and how it ends: on a mistake of the user, a signal, a closed pipe, or an unexpected error."""
from __future__ import annotations

import errno
import os
import re
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from io import TextIOWrapper
from typing import TextIO

from utils.run import distributed
from utils.run.errors import EXIT_STOPPED, EXIT_UNREAD, EXIT_USER_ERROR, UserError
from utils.run.log import paint
from utils.run.signals import StoppedError, handled, stop, stop_at_once

LAUNCHER = 5  # seconds in which PyTorch's launcher sees that a process is dead, which it asks ten times a second
LOST_WORKER = ('a loader worker was killed, for lack of memory or of shared memory (/dev/shm; of a container by '
               '--shm-size): raise it or lower num_workers')
LESS_MEMORY = ('lower train_batch_size (val_batch_size or --batch-size, where nothing is trained), set precision: bf16 '
               'or model_kwargs.upsample: false, or end what else runs on the GPU.')
# how PyTorch and the libraries under it say that a GPU has too little memory; most that cannot start lack it too
NO_MEMORY = re.compile(r'(CUDA|XPU|MPS backend|NCCL)\b.*(out of memory|Failed to CUDA \w*alloc)|'
                       r'(CUBLAS|CUDNN)_STATUS_(\w*ALLOC\w*|NOT_INITIALIZED)', re.DOTALL)
DENIED = (errno.EACCES, errno.EPERM)
CANNOT_WRITE = (errno.ENOSPC, errno.EROFS, *DENIED, errno.EDQUOT, errno.EFBIG)


def sentence(error: UserError) -> str:
    """The sentence of an error, also when a loader worker sent it with its traceback in front."""
    text = str(error)
    return re.split(r'^[\w.]+Error: ', text, flags=re.MULTILINE)[-1].strip() if 'Original Traceback' in text else text


def lost_worker(error: BaseException | None) -> bool:
    """Whether a loader worker was killed, or found no shared memory."""
    if not isinstance(error, (ConnectionError, EOFError, RuntimeError)):
        return False
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises the same once more, at any moment
    if isinstance(error, RuntimeError):
        return re.search(r'DataLoader worker .*(killed by signal|exited unexpectedly)|</torch_', str(error)) is not None
    return any(frame.f_code.co_filename.endswith('resource_sharer.py')  # it died while it handed over a tensor
               for frame, _ in traceback.walk_tb(error.__traceback__))


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main(); user errors end in one sentence on stderr and exit code 2.

    A full disk, a file that may not be read or written and too little memory of a GPU count as user errors. SIGTERM
    and SIGINT end in one sentence and exit code 75; training finishes and saves its step first. An output that nobody
    reads any longer (``| head -1``) ends in silence. Anything unexpected keeps its traceback. Of several processes the
    first that fails speaks for all.
    """
    os.environ['MPLBACKEND'] = 'agg'  # that of a notebook may not be installed here, and no plot needs a display
    if isinstance(sys.stdout, TextIOWrapper):  # what is printed may hold names of files, which need not be UTF-8
        sys.stdout.reconfigure(errors='backslashreplace')
    try:
        with handled(stop_at_once, signal.SIGTERM), handled(stop, signal.SIGINT):
            try:
                main()
            except SystemExit:  # of --help
                sys.stdout.flush()
                raise
            sys.stdout.flush()
        distributed.leave()
    except (Exception, StoppedError) as failure:
        code, message = _ending(failure)
        alone = not distributed.is_launched()
        first = distributed.first_to_fail()
        if code == 1 and not alone:  # another process may be dead: the launcher tells so, and ends this one meanwhile
            time.sleep(LAUNCHER)
        if first:
            if message:
                print(message, file=sys.stderr)
            elif alone and code == 1:
                raise
            elif code == 1:
                traceback.print_exc()
        if alone:
            raise SystemExit(code) from None
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # nothing waits for processes that are dead, or for what they were to compute together


def _ending(failure: BaseException) -> tuple[int, str]:
    """The exit code of a failure, 1 for what is unexpected, and its sentence, if it has one."""
    if isinstance(failure, StoppedError):
        return EXIT_STOPPED, str(failure)
    if isinstance(failure, UserError):
        text = sentence(failure)
    elif isinstance(failure, BrokenPipeError) and _unread(sys.stdout):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still flushes at its end
        return EXIT_UNREAD, ''
    elif lost_worker(failure):
        text = f'{LOST_WORKER}, and start again.'
    elif isinstance(failure, RuntimeError) and NO_MEMORY.search(str(failure)):
        said = str(failure).splitlines()[0].partition('. ')[0]
        text = f'the GPU has too little memory ({said}); {LESS_MEMORY}'
    elif isinstance(failure, OSError) and failure.errno in CANNOT_WRITE:
        place = f' ({failure.filename})' if failure.filename else ''
        denied = failure.errno in DENIED
        text = (f'cannot {"read or " if denied else ""}write: {failure.strerror}{place}; '
                f'{"change its permissions" if denied else "free some space"} or choose another '
                f'{"" if denied else "output "}folder.')
    else:
        return 1, ''
    return EXIT_USER_ERROR, f'{paint("error:", sys.stderr, "red")} {text}'


def _unread(stream: TextIO) -> bool:
    """Whether nobody is left to read what is written to a stream."""
    if not hasattr(select, 'poll'):  # Windows
        return True
    poll = select.poll()
    poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
