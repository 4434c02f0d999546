"""Mistakes a user can make, and how a script ends on them."""
from __future__ import annotations

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path

import torch

from utils import distributed
from utils.interrupt import EXIT_STOPPED, StoppedError, handled, stop, stop_at_once
from utils.logger import paint

EXIT_USER_ERROR = 2
OUT_OF_MEMORY = ('CUDA out of memory; lower train_batch_size (val_batch_size, where nothing is trained), or set '
                 'precision: bf16, or lower loss_chunk.')
LOST_WORKER = ('a loader worker was killed, for lack of memory or of shared memory (/dev/shm; of a container by '
               '--shm-size): raise it or lower num_workers')
DENIED = (errno.EACCES, errno.EPERM)
CANNOT_WRITE = (errno.ENOSPC, errno.EROFS, *DENIED, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """A mistake the user can mend: one sentence that names the thing and the mend."""


class MissingFileError(UserError):
    """A file is in none of the places where it was looked for."""


def cannot_read(path: Path) -> UserError:
    """The error of a file that is there and may not be read."""
    return UserError(f'{path} cannot be read (permission denied); change its permissions.')


def sentence(error: UserError) -> str:
    """The sentence of an error, also when a loader worker sent it with its traceback in front."""
    text = str(error)
    return text.rsplit('UserError: ', 1)[-1].strip() if 'Original Traceback' in text else text


def name_some(names: Sequence[str], limit: int = 5) -> str:
    """'a, b, c and 12 more': the first few of a list, and how many are left."""
    shown = ', '.join(str(n) for n in names[:limit])
    return shown if len(names) <= limit else f'{shown} and {len(names) - limit} more'


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
    and SIGINT end in one sentence and exit code 75; training finishes and saves its step first. Anything unexpected
    keeps its traceback. Of several processes the first that fails speaks for all.
    """
    os.environ['MPLBACKEND'] = 'agg'  # that of a notebook may not be installed here, and no plot needs a display
    if isinstance(sys.stdout, TextIOWrapper):  # what is printed may hold names of files, which need not be UTF-8
        sys.stdout.reconfigure(errors='backslashreplace')
    try:
        with handled(stop_at_once, signal.SIGTERM), handled(stop, signal.SIGINT):
            main()
        distributed.leave()
    except (Exception, StoppedError) as failure:
        error = UserError(OUT_OF_MEMORY) if isinstance(failure, torch.OutOfMemoryError) else failure
        error = UserError(f'{LOST_WORKER}, and start again.') if lost_worker(error) else error
        if not distributed.first_to_fail():
            sys.stdout.flush()
            os._exit(EXIT_STOPPED if isinstance(error, StoppedError) else
                     EXIT_USER_ERROR if isinstance(error, UserError) else 1)  # nothing waits for dead processes
        _report(error)


def _report(failure: BaseException) -> None:
    try:
        raise failure
    except UserError as error:
        _end(sentence(error))
    except StoppedError as error:
        print(error, file=sys.stderr)
        raise SystemExit(EXIT_STOPPED) from None
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        place = f' ({error.filename})' if error.filename else ''
        if error.errno in DENIED:
            _end(f'cannot read or write: {error.strerror}{place}; change its permissions or choose another folder.')
        _end(f'cannot write: {error.strerror}{place}; free some space or choose another output folder.')


def _end(message: str) -> None:
    print(f'{paint("error:", sys.stderr, "red")} {message}', file=sys.stderr)
    raise SystemExit(EXIT_USER_ERROR)
